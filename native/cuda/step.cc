// Packing of a step, and the plan of its attention.
#include "cuda/step.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int64_t kHeaderWords = sizeof(PackedStep) / sizeof(int32_t);
constexpr int64_t kSegmentWords = sizeof(Segment) / sizeof(int32_t);
constexpr int64_t kAlignBytes = 256;

static_assert(sizeof(PackedStep) % sizeof(int32_t) == 0 && sizeof(Segment) == 32);

int64_t aligned(int64_t bytes) { return (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes; }

int32_t divide_up(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// Hands out aligned pieces of one allocation; with a null base it only counts.
class Placer {
 public:
  explicit Placer(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  void place(T*& pointer, int64_t count) {
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + used_);
    used_ += aligned(count * static_cast<int64_t>(sizeof(T)));
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

int64_t place_all(const Limits& limits, void* memory, DeviceStep& step) {
  Placer placer(memory);
  placer.place(step.counts, 1);
  placer.place(step.tokens, limits.max_tokens);
  placer.place(step.positions, limits.max_tokens);
  placer.place(step.kv_slots, limits.max_tokens);
  placer.place(step.block_tables, limits.max_seqs * limits.max_blocks_per_seq);
  placer.place(step.rows, limits.max_rows);
  placer.place(step.decode, (kMaxParts + 1) * limits.max_seqs);
  placer.place(step.prefill, (kMaxParts + 1) * limits.max_seqs);
  return placer.used();
}

// The plan of the rows [begin, end).
struct Plan {
  std::vector<Segment> decode;
  std::vector<Segment> prefill;
  PartPlan counts{};
};

// Keys that the last row of [begin, end) which is not padding sees.
int32_t context_of(const GroupStep& step, int32_t begin, int32_t end) {
  for (int32_t row = end - 1; row >= begin; --row)
    if (step.kv_slots[row] >= 0) return step.positions[row] + 1;
  return 0;
}

void split_keys(const StepPlanConfig& config, Plan& plan) {
  for (int32_t scale = 1;; scale *= 2) {
    int32_t splits = 0;
    int64_t partials = 0;
    for (Segment& segment : plan.decode) {
      // A multiple of 64 keys keeps a split's first block at the same place in every warp's turn.
      const int32_t even = divide_up(divide_up(segment.context, kMaxSplits), 64) * 64;
      segment.split_keys = std::max(kSplitKeys, even) * scale;
      segment.num_splits = std::max(1, divide_up(segment.context, segment.split_keys));
      segment.first_unit = splits;
      segment.first_partial = segment.num_splits == 1 ? -1 : static_cast<int32_t>(partials);
      splits += segment.num_splits;
      if (segment.num_splits > 1)
        partials += int64_t{segment.num_splits} * (segment.row_end - segment.row_begin);
    }
    plan.counts.num_splits = splits;
    if (partials <= config.partial_rows) return;
  }
}

Plan plan_rows(const GroupStep& step, const StepPlanConfig& config, int32_t begin, int32_t end) {
  Plan plan;
  if (step.kv_slots.empty()) return plan;  // a program without attention
  for (int64_t s = 0; s < step.num_seqs(); ++s) {
    const int32_t first = std::max(begin, step.seq_starts[s]);
    const int32_t last = std::min(end, step.seq_starts[s + 1]);
    if (first >= last) continue;
    Segment segment{.seq = static_cast<int32_t>(s),
                    .row_begin = first,
                    .row_end = last,
                    .context = context_of(step, first, last),
                    .first_unit = plan.counts.num_tiles,
                    .split_keys = 0,
                    .num_splits = 0,
                    .first_partial = -1};
    if (last - first <= config.decode_rows) {
      plan.decode.push_back(segment);
    } else {
      plan.counts.num_tiles += divide_up(last - first, kPrefillRows);
      plan.prefill.push_back(segment);
    }
  }
  plan.counts.num_decode = static_cast<int32_t>(plan.decode.size());
  plan.counts.num_prefill = static_cast<int32_t>(plan.prefill.size());
  split_keys(config, plan);
  return plan;
}

// Appends sections behind the header and returns where they begin.
class Packer {
 public:
  explicit Packer(std::span<int32_t> words) : words_(words) {}
  template <typename T>
  int32_t append(std::span<const T> items) {
    const int64_t at = used_;
    const auto bytes = items.size_bytes();
    used_ += static_cast<int64_t>(bytes / sizeof(int32_t));
    CHECK(used_ <= static_cast<int64_t>(words_.size()) && used_ <= INT32_MAX);
    if (bytes > 0) std::memcpy(words_.data() + at, items.data(), bytes);
    return static_cast<int32_t>(at);
  }

 private:
  std::span<int32_t> words_;
  int64_t used_ = kHeaderWords;
};

int32_t count_of(std::span<const int32_t> words, int64_t entry_words) {
  return static_cast<int32_t>(static_cast<int64_t>(words.size()) / entry_words);
}

}  // namespace

int64_t device_step_bytes(const Limits& limits) {
  DeviceStep none{};
  return place_all(limits, nullptr, none);
}

DeviceStep place_device_step(const Limits& limits, void* memory) {
  DeviceStep step{};
  place_all(limits, memory, step);
  step.block_table_stride = static_cast<int32_t>(limits.max_blocks_per_seq);
  step.max_seqs = static_cast<int32_t>(limits.max_seqs);
  return step;
}

StepPlanConfig step_plan_config(const Limits& limits, bool deterministic) {
  if (deterministic) return {.decode_rows = 0, .partial_rows = 0};
  // 1024 rows hold the 128 splits of one sequence's 8 rows; 4096 fill any device.
  const int64_t rows = std::clamp<int64_t>(8 * limits.max_seqs, 1024, 4096);
  return {.decode_rows = kDecodeRows, .partial_rows = static_cast<int32_t>(rows)};
}

int64_t most_step_words(const Limits& limits) {
  const int64_t segments = (kMaxParts + 1) * limits.max_seqs * kSegmentWords;
  return kHeaderWords + 3 * limits.max_tokens + limits.max_seqs * limits.max_blocks_per_seq +
         4 * limits.max_rows + segments + kSlotParamWords * limits.num_slots +
         2 * limits.num_blocks;
}

int64_t packed_step_words(const GroupStep& step) {
  const int64_t segments = (kMaxParts + 1) * step.num_seqs() * kSegmentWords;
  return kHeaderWords + 3 * step.num_tokens() + static_cast<int64_t>(step.block_tables.size()) +
         4 * static_cast<int64_t>(step.rows.size()) + segments +
         static_cast<int64_t>(step.slot_params.size() + step.slot_history.size() +
                              step.slot_bias.size() + step.block_copies.size() +
                              step.allowed_tokens.size());
}

void pack_step(const GroupStep& step, const StepPlanConfig& config, std::span<int32_t> words) {
  PackedStep header{};
  header.counts.num_tokens = static_cast<int32_t>(step.num_tokens());
  header.counts.num_seqs = static_cast<int32_t>(step.num_seqs());
  header.counts.num_rows = static_cast<int32_t>(step.rows.size());
  const int parts = static_cast<int>(step.part_bounds.size()) - 1;
  CHECK(parts <= kMaxParts);
  for (int i = 0; i <= kMaxParts; ++i)
    header.counts.part_bounds[i] = step.part_bounds[std::min(i, parts)];

  Packer packer(words);
  header.tokens = packer.append(step.tokens);
  header.positions = packer.append(step.positions);
  header.kv_slots = packer.append(step.kv_slots);
  header.num_kv_slots = count_of(step.kv_slots, 1);
  header.block_tables = packer.append(step.block_tables);
  header.block_table_width = static_cast<int32_t>(step.block_table_width);
  header.rows = packer.append(step.rows);
  for (int part = 0; part <= kMaxParts; ++part) {
    const bool whole = part == kMaxParts;
    const Plan plan =
        plan_rows(step, config, whole ? 0 : header.counts.part_bounds[part],
                  whole ? header.counts.num_tokens : header.counts.part_bounds[part + 1]);
    header.counts.plans[part] = plan.counts;
    header.decode[part] = packer.append<Segment>(plan.decode);
    header.prefill[part] = packer.append<Segment>(plan.prefill);
  }
  header.slot_params = packer.append(step.slot_params);
  header.num_slot_params = count_of(step.slot_params, kSlotParamWords);
  header.slot_history = packer.append(step.slot_history);
  header.num_slot_history = count_of(step.slot_history, 1);
  header.slot_bias = packer.append(step.slot_bias);
  header.num_slot_bias = count_of(step.slot_bias, 1);
  header.block_copies = packer.append(step.block_copies);
  header.num_block_copies = count_of(step.block_copies, 2);
  header.allowed_tokens = packer.append(step.allowed_tokens);
  header.num_allowed_tokens = count_of(step.allowed_tokens, 1);
  std::memcpy(words.data(), &header, sizeof header);
}

}  // namespace nanoweave
