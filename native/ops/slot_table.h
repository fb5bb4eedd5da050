// SlotTable: sampling state of running sequences on one rank: parameters, penalty counts, bias,
// last token. Every rank of a group holds the same state and samples the same token, so no
// broadcast is needed. Rank thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "program/step.h"

namespace nanoweave {

struct SlotState {
  uint64_t seed = 0;
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::unordered_map<int32_t, int32_t>
      output_counts;  // token → times sampled; kept only with penalties
  std::unordered_map<int32_t, int32_t> prompt_counts;  // repetition penalty sees the prompt too
  std::unordered_map<int32_t, float> bias;             // token → added to its logit
  std::vector<uint32_t> allowed;  // a bit per token; empty: every token may come
  int32_t last_token = 0;

  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

class SlotTable {
 public:
  explicit SlotTable(int64_t num_slots) : slots_(num_slots) {}

  // Applies slot_params, then slot_history, slot_bias and allowed_tokens of a step.
  void apply(const GroupStep& step);

  SlotState& operator[](int64_t slot) { return slots_[slot]; }
  void record_sample(int64_t slot, int32_t token);  // last token and counts

  // A token word of a step: itself, or the last token of slot -(word + 1).
  int32_t resolve(int32_t word) const { return word >= 0 ? word : slots_[-(word + 1)].last_token; }

 private:
  std::vector<SlotState> slots_;
};

}  // namespace nanoweave
