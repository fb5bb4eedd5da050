// The step as kernels see it: at fixed device addresses, so that a captured graph serves every step
// that fits its bucket. The host packs the sections of a GroupStep and plans attention
// (pack_step), one copy brings the words to the device, and load_step() spreads them over
// DeviceStep and resolves tokens that stand for a slot. Kernels take all their sizes from it and
// never look at rows beyond them.
#pragma once

#include <cstdint>
#include <span>

#include "program/step.h"

namespace nanoweave {

inline constexpr int kMaxParts = 4;
inline constexpr int kMaxTopLogprobs = 20;

// Rows of one sequence inside one part.
struct Segment {
  int32_t seq;
  int32_t row_begin;  // of the step
  int32_t row_end;
  int32_t context;        // keys its last row sees: position + 1; 0: only padding rows
  int32_t first_unit;     // exclusive prefix sum over the list: of splits, or of row tiles
  int32_t split_keys;     // decode list: keys of one split
  int32_t num_splits;     // decode list
  int32_t first_partial;  // decode list: exclusive prefix sum of split rows; −1: one split
};

// Attention's work in one part, chosen once per step for all layers. A segment of up to
// `decode_rows` rows is split over keys: a split holds kSplitKeys or more of them, and a sequence
// has at most kMaxSplits. When a part's partial results would not fit the workspace, its splits
// double until they do. Longer segments are tiled by kPrefillRows; when deterministic all segments
// are, since only that gives a row the same bits whatever else is in the step.
struct PartPlan {
  int32_t num_decode;   // segments
  int32_t num_splits;   // their splits
  int32_t num_prefill;  // segments
  int32_t num_tiles;    // their row tiles
};
inline constexpr int kDecodeRows = 8;
inline constexpr int kSplitKeys = 256;
inline constexpr int kMaxSplits = 128;
inline constexpr int kPrefillRows = 128;

struct StepCounts {
  int32_t num_tokens;
  int32_t num_seqs;
  int32_t num_rows;
  int32_t part_bounds[kMaxParts + 1];
  PartPlan plans[kMaxParts + 1];  // by part; the last is for ops that take no part
};

// One rank's step, the same pointers from load to close; passed to kernels by value.
struct DeviceStep {
  StepCounts* counts;
  int32_t* tokens;             // [maxTokens] ids, resolved
  int32_t* positions;          // [maxTokens]
  int32_t* kv_slots;           // [maxTokens]; −1: padding, writes no KV, attends to nothing
  int32_t* block_tables;       // [maxSeqs, block_table_stride]
  StepRow* rows;               // [maxRows]
  Segment* decode;             // [kMaxParts + 1, max_seqs]
  Segment* prefill;            // [kMaxParts + 1, max_seqs]
  int32_t block_table_stride;  // maxBlocksPerSeq
  int32_t max_seqs;
};

// Bytes of device memory a rank's step takes, and its pointers into such memory (256-byte aligned).
int64_t device_step_bytes(const Limits& limits);
DeviceStep place_device_step(const Limits& limits, void* memory);

// Header of a packed step. Offsets are in words from the start of the packed step.
struct PackedStep {
  StepCounts counts;
  int32_t block_table_width;
  int32_t tokens, positions, kv_slots, block_tables, rows;
  int32_t num_kv_slots;  // num_tokens, or 0: a program without a KV cache
  int32_t decode[kMaxParts + 1], prefill[kMaxParts + 1];
  int32_t slot_params, num_slot_params;        // entries of kSlotParamWords
  int32_t slot_history, num_slot_history;      // words
  int32_t slot_bias, num_slot_bias;            // words
  int32_t block_copies, num_block_copies;      // pairs
  int32_t allowed_tokens, num_allowed_tokens;  // words
};

struct StepPlanConfig {
  int32_t decode_rows = kDecodeRows;  // 0 when deterministic
  int32_t partial_rows = 0;           // rows of partial results the decode workspace holds
};

// Rows of partial results the decode workspace of a program holds.
StepPlanConfig step_plan_config(const Limits& limits, bool deterministic);

// Words of the largest step of a group within these limits, its slot lists left out.
int64_t most_step_words(const Limits& limits);
// Words that pack_step() writes for this step.
int64_t packed_step_words(const GroupStep& step);
// `words` holds packed_step_words(step); the first ones are a PackedStep.
void pack_step(const GroupStep& step, const StepPlanConfig& config, std::span<int32_t> words);

}  // namespace nanoweave
