// Sampling state of running sequences on the device: what ops/slot_table.h is on the host. Every
// rank of a group holds the same state and samples the same token.
#pragma once

#include <cstdint>

namespace nanoweave {

// Tokens that sampling on a device can tell apart: its sums of weights hold as many (sampling.cuh),
// and a row of logits fits what brings it back (runtime/cuda/step_stage.cc).
inline constexpr int64_t kMaxSampledVocab = int64_t{1} << 18;

struct SlotParams {
  uint64_t seed;
  float temperature;  // below 1e-5: greedy
  int32_t top_k;      // 0: off
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t has_bias;
  int32_t has_mask;
  int32_t last_token;  // the one sampled last
};

// A token's history in a slot: whether the prompt has it, and how often it was sampled (penalties
// only; saturates).
inline constexpr uint16_t kCountPrompt = 0x8000;
inline constexpr uint16_t kCountMask = 0x7fff;

struct SlotStates {
  SlotParams* params;  // [num_slots]
  uint16_t* counts;    // [num_slots, vocab_size]
  float* bias;         // [num_slots, vocab_size], read where has_bias
  uint32_t* allowed;   // [num_slots, mask_words(vocab_size)], read where has_mask: a bit per token
  int32_t vocab_size;
};

}  // namespace nanoweave
