// Slot lists of a step (history, biases, masks) cut into steps of their own, for a step that brings
// more of them than there is room for beside it. Loaded one after another, in order, the pieces
// leave the slots as the lists would have.
#pragma once

#include <vector>

#include "program/step.h"

namespace nanoweave {

// Words of a step's lists.
int64_t slot_list_words(const GroupStep& step);

// Steps without tokens, of at most `most_words` words of lists each; the first one sets the slots
// that the step sets. `most_words` holds a mask and its two words at least.
class SlotPieces {
 public:
  SlotPieces(const GroupStep& step, int64_t most_words);

  size_t size() const { return pieces_.size(); }
  GroupStep piece(size_t index) const;

 private:
  enum class Kind { kParams, kHistory, kBias, kAllowed };
  struct Piece {
    Kind kind;
    std::vector<int32_t> words;
  };

  void cut(Kind kind, std::span<const int32_t> lists, int64_t most_words);

  std::vector<Piece> pieces_;
};

// The step without what its pieces have done.
GroupStep without_slot_updates(GroupStep step);

}  // namespace nanoweave
