#include "cuda/slot_pieces.h"

#include <algorithm>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int64_t kListHeadWords = 2;  // slot, count
constexpr int32_t kNoBounds[] = {0, 0};

}  // namespace

int64_t slot_list_words(const GroupStep& step) {
  return static_cast<int64_t>(step.slot_history.size() + step.slot_bias.size() +
                              step.allowed_tokens.size());
}

SlotPieces::SlotPieces(const GroupStep& step, int64_t most_words) {
  if (!step.slot_params.empty())
    pieces_.push_back({Kind::kParams, {step.slot_params.begin(), step.slot_params.end()}});
  cut(Kind::kHistory, step.slot_history, most_words);
  cut(Kind::kBias, step.slot_bias, most_words);
  cut(Kind::kAllowed, step.allowed_tokens, most_words);
}

// A mask stays whole; entries of other lists may be told apart from each other.
void SlotPieces::cut(Kind kind, std::span<const int32_t> lists, int64_t most_words) {
  std::vector<int32_t> words;
  const auto room = [&] {
    return most_words - static_cast<int64_t>(words.size()) - kListHeadWords;
  };
  const auto finish = [&] {
    if (!words.empty()) pieces_.push_back({kind, std::exchange(words, {})});
  };
  const int64_t entry = kind == Kind::kBias ? 2 : 1;
  for (int64_t at = 0; at < static_cast<int64_t>(lists.size());) {
    const int32_t slot = lists[at], count = lists[at + 1];
    const int64_t unit = kind == Kind::kAllowed ? std::max(count, 1) : entry;
    at += kListHeadWords;
    int64_t left = count;
    do {  // an empty list has a meaning too
      if (room() < (left > 0 ? unit : 0)) finish();
      const int64_t taken = std::min(left, room() / unit * (unit / entry));
      CHECK(left == 0 || taken > 0);
      words.push_back(slot);
      words.push_back(static_cast<int32_t>(taken));
      words.insert(words.end(), lists.begin() + at, lists.begin() + at + taken * entry);
      at += taken * entry;
      left -= taken;
    } while (left > 0);
  }
  finish();
}

GroupStep SlotPieces::piece(size_t index) const {
  const Piece& piece = pieces_[index];
  GroupStep step;
  step.part_bounds = kNoBounds;
  switch (piece.kind) {
    case Kind::kParams:
      step.slot_params = piece.words;
      break;
    case Kind::kHistory:
      step.slot_history = piece.words;
      break;
    case Kind::kBias:
      step.slot_bias = piece.words;
      break;
    case Kind::kAllowed:
      step.allowed_tokens = piece.words;
      break;
  }
  return step;
}

GroupStep without_slot_updates(GroupStep step) {
  step.slot_params = step.slot_history = step.slot_bias = step.allowed_tokens = {};
  return step;
}

}  // namespace nanoweave
