// SlotTable: how the slot sections of a step change the sampling state.
#include "ops/slot_table.h"

#include <algorithm>
#include <bit>
#include <cfloat>

namespace nanoweave {
namespace {

float as_float(int32_t word) { return std::bit_cast<float>(word); }

uint64_t as_u64(int32_t low, int32_t high) {
  return uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low);
}

}  // namespace

void SlotTable::apply(const GroupStep& step) {
  for (size_t at = 0; at + kSlotParamWords <= step.slot_params.size(); at += kSlotParamWords) {
    const std::span<const int32_t> words = step.slot_params.subspan(at, kSlotParamWords);
    SlotState& slot = slots_[words[0]];
    slot.seed = as_u64(words[1], words[2]);
    slot.temperature = as_float(words[3]);
    slot.top_k = words[4];
    slot.top_p = as_float(words[5]);
    slot.min_p = as_float(words[6]);
    slot.repetition_penalty = as_float(words[7]);
    slot.presence_penalty = as_float(words[8]);
    slot.frequency_penalty = as_float(words[9]);
    slot.output_counts.clear();
    slot.prompt_counts.clear();
    slot.bias.clear();
    slot.allowed.clear();
  }
  for (size_t at = 0; at + 2 <= step.slot_history.size();) {
    SlotState& slot = slots_[step.slot_history[at]];
    const auto count = static_cast<size_t>(step.slot_history[at + 1]);
    for (const int32_t token : step.slot_history.subspan(at + 2, count))
      ++slot.prompt_counts[token];
    at += 2 + count;
  }
  for (size_t at = 0; at + 2 <= step.slot_bias.size();) {
    SlotState& slot = slots_[step.slot_bias[at]];
    const auto count = static_cast<size_t>(step.slot_bias[at + 1]);
    const std::span<const int32_t> pairs = step.slot_bias.subspan(at + 2, 2 * count);
    for (size_t i = 0; i < pairs.size(); i += 2) {
      float& bias = slot.bias[pairs[i]];
      // Finite entries may add up to +Inf, which would poison the whole row.
      bias = std::min(bias + as_float(pairs[i + 1]), FLT_MAX);
      if (bias == 0) slot.bias.erase(pairs[i]);
    }
    at += 2 + 2 * count;
  }
  for (size_t at = 0; at + 2 <= step.allowed_tokens.size();) {
    const auto count = static_cast<size_t>(step.allowed_tokens[at + 1]);
    const std::span<const int32_t> mask = step.allowed_tokens.subspan(at + 2, count);
    slots_[step.allowed_tokens[at]].allowed.assign(mask.begin(), mask.end());
    at += 2 + count;
  }
}

void SlotTable::record_sample(int64_t slot, int32_t token) {
  SlotState& state = slots_[slot];
  state.last_token = token;
  if (state.has_penalties()) ++state.output_counts[token];
}

}  // namespace nanoweave
