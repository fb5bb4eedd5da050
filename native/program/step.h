// Step encoding, mirrored by lib/engine/step.ts (constants compared by test/step.test.ts): what one
// step computes, as sections of an Int32Array. parse_step validates everything an op would
// otherwise have to trust (ids, slots, blocks, order), so kernels index without checks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "program/program.h"

namespace nanoweave {

inline constexpr int32_t kStepVersion = 1;
inline constexpr int32_t kStepHeaderWords = 5;
inline constexpr int32_t kStepSectionWords = 4;
inline constexpr int32_t kSlotParamWords = 12;

enum class StepSection : int32_t {
  kPartBounds = 1,
  kTokens = 2,
  kPositions = 3,
  kKvSlots = 4,
  kSeqStarts = 5,
  kSeqLens = 6,
  kBlockTables = 7,
  kRows = 8,
  kSlotParams = 9,
  kSlotHistory = 10,
  kSlotBias = 11,
  kBlockCopies = 12,
  kSwapOut = 13,
  kSwapIn = 14,
  kAllowedTokens = 15,
  kExpertTables = 16,
  kExpertCopies = 17,
};

enum class ResultSection : int32_t {
  kSampled = 1,
  kLogprobs = 2,
  kTopLogprobs = 3,
  kLogits = 4,
  kTimings = 5,
  kExpertCounts = 6,
  kExpertChoices = 7,
};

// Flags of a step.
inline constexpr int32_t kStepExpertCounts = 1;
inline constexpr int32_t kStepExpertChoices = 2;

inline constexpr int32_t kExpertWays = 32;  // slots of an expert in an expert table

inline constexpr int32_t kRowSample = 1;
inline constexpr int32_t kRowLogits = 2;
inline constexpr int32_t kRowLogprob = 4;
inline constexpr int32_t kRowTopShift = 8;  // bits 8..15: how many top log-probabilities

// Words of a mask over a vocabulary.
inline constexpr int64_t mask_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }

struct StepRow {
  int32_t token_row;
  int32_t slot;    // -1: none
  int32_t target;  // -1: none
  int32_t flags;
};

// The sections of one attention group. Spans point into Step::words.
struct GroupStep {
  std::span<const int32_t> part_bounds;   // [parts + 1]
  std::span<const int32_t> tokens;        // [T]
  std::span<const int32_t> positions;     // [T]
  std::span<const int32_t> kv_slots;      // [T]
  std::span<const int32_t> seq_starts;    // [S + 1]
  std::span<const int32_t> seq_lens;      // [S]
  std::span<const int32_t> block_tables;  // [S, block_table_width]
  int64_t block_table_width = 0;
  std::span<const StepRow> rows;         // [R]
  std::span<const int32_t> slot_params;  // [n, kSlotParamWords]
  std::span<const int32_t> slot_history;
  std::span<const int32_t> slot_bias;
  // [n, 2] {source, destination}: each destination once, and no source among them, so that the
  // order of the copies does not matter.
  std::span<const int32_t> block_copies;
  // [n, 3] {device block, host block, count}: runs of KV blocks copied to the host, all of them
  // first, and from the host, before block_copies. No block is the destination of two runs.
  std::span<const int32_t> swap_out;
  std::span<const int32_t> swap_in;
  // {slot, count, words…} repeated: bit t of word t / 32 lets token t come. count is the words of a
  // vocabulary, or 0: every token may come again.
  std::span<const int32_t> allowed_tokens;

  bool returns_expert_choices = false;  // a flag of the step

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_seqs() const { return static_cast<int64_t>(seq_lens.size()); }
};

struct Step {
  std::vector<int32_t> words;  // owned copy of what was submitted
  int32_t id = 0;
  int32_t flags = 0;
  int32_t bucket = 0;
  std::vector<GroupStep> groups;  // [world / tp]

  // Of all ranks; they stand in group 0. {hash, (table, [experts, kExpertWays] slots)…}: hash is
  // that of all tables afterwards.
  std::span<const int32_t> expert_tables;
  // [n, 3] {table, source slot, destination slot}: the weights of experts are copied before the
  // tables change. A destination stands once, and is no source.
  std::span<const int32_t> expert_copies;
};

// ERR_STEP names the section and index that is out of bounds.
std::unique_ptr<Step> parse_step(const Program& program, std::span<const int32_t> words);

// What the sample op writes on the first rank of each group; encoded into the result envelope.
struct StepResult {
  struct Group {
    std::vector<int32_t> sampled;         // [R], -1: did not sample
    std::vector<float> logprobs;          // [R], NaN: not asked
    std::vector<int32_t> top_logprobs;    // encoded as in RESULT_SECTION.topLogprobs
    std::vector<int32_t> logits;          // encoded as in RESULT_SECTION.logits
    std::vector<int32_t> expert_counts;   // [tables, experts], when asked
    std::vector<int32_t> expert_choices;  // [tables, T, choices], when asked
  };
  std::vector<Group> groups;
  int32_t queue_us = 0;
  int32_t run_us = 0;
};

std::vector<int32_t> encode_result(const Step& step, const StepResult& result);

}  // namespace nanoweave
