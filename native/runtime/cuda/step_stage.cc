#include "runtime/cuda/step_stage.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/load_step.h"
#include "cuda/slot_pieces.h"

namespace nanoweave {

namespace {

constexpr int64_t kWordBytes = sizeof(int32_t);
constexpr int64_t kResultWords = 2 + 2 * kMaxTopLogprobs;  // of a row
constexpr int64_t kBounceBytes = int64_t{1} << 20;
static_assert(kBounceBytes >= kMaxSampledVocab * kWordBytes, "a row of logits must fit");
constexpr int64_t kUsualListWords = 16384;  // history and biases
constexpr int64_t kListHeadWords = 2;       // slot, count
// For a copy and small kernels that wait for nobody.
constexpr auto kPieceTime = std::chrono::seconds(20);

int num_top_logprobs(const StepRow& row) { return row.flags >> kRowTopShift & 0xff; }

bool wants_top(const GroupStep& step) {
  return std::any_of(step.rows.begin(), step.rows.end(),
                     [](const StepRow& row) { return num_top_logprobs(row) > 0; });
}

// Room for lists: history and biases as usual, and a mask for every row that samples.
int64_t list_room(const Limits& limits) {
  const int64_t masks = std::max<int64_t>(1, std::min(limits.max_rows, limits.num_slots));
  return kUsualListWords + masks * (mask_words(limits.vocab_size) + kListHeadWords);
}

std::vector<int> groups_of(const std::vector<CudaRank>& ranks) {
  std::vector<int> groups;
  for (const CudaRank& rank : ranks) {
    const int group = rank.rank / rank.tp;
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) groups.push_back(group);
  }
  return groups;
}

// Runs of {device block, host block, count}: to the host, then from it.
void swap_blocks(const DeviceProgram::KvBuffer& kv, const GroupStep& step, CudaStream stream) {
  for (const bool out : {true, false}) {
    const std::span<const int32_t> runs = out ? step.swap_out : step.swap_in;
    for (size_t at = 0; at + 2 < runs.size(); at += 3) {
      std::byte* device = kv.data + runs[at] * kv.block_bytes;
      std::byte* host = kv.host + runs[at + 1] * kv.block_bytes;
      copy_async(out ? host : device, out ? device : host, runs[at + 2] * kv.block_bytes, stream);
    }
  }
}

}  // namespace

bool holds_device(const Step& step) {
  if ((step.flags & kStepExpertChoices) != 0) return true;
  for (const GroupStep& group : step.groups)
    for (const StepRow& row : group.rows)
      if ((row.flags & kRowLogits) != 0) return true;
  return false;
}

StepStage::StepStage(DeviceState& state)
    : state_(state),
      bounce_(kBounceBytes, "rows of logits"),
      uploaded_(false),
      started_(true),
      finished_(true) {}

void StepStage::reserve(const DeviceProgram& program) {
  const Limits& limits = program.prepared().program.limits;
  const auto groups = static_cast<int64_t>(groups_of(program.ranks()).size());
  step_words_ = std::max(step_words_, most_step_words(limits));
  list_words_ = std::max(list_words_, list_room(limits));
  const int64_t bytes = (step_words_ + list_words_) * kWordBytes * groups;
  if (bytes > host_words_.bytes()) {
    host_words_ = {};
    device_words_ = {};
    device_words_ = DeviceMemory(state_.device().ordinal, bytes, "steps");
    host_words_ = PinnedMemory(bytes, "steps");
  }
  const auto ranks = static_cast<int64_t>(program.ranks().size());
  const int64_t results = limits.max_rows * kResultWords * kWordBytes * ranks;
  if (results > results_.bytes()) results_ = PinnedMemory(results, "the results of steps");
  const int64_t counts = limits.experts.tables * limits.experts.count * kWordBytes;
  if (counts * kExpertWays > expert_tables_.bytes())
    expert_tables_ = PinnedMemory(counts * kExpertWays, "expert tables");
  if (counts * ranks > expert_counts_.bytes())
    expert_counts_ = PinnedMemory(counts * ranks, "counts of choices");
}

bool StepStage::fits(const DeviceProgram& program, const Step& step) const {
  const std::vector<int> groups = groups_of(program.ranks());
  return std::all_of(groups.begin(), groups.end(),
                     [&](int group) { return slot_list_words(step.groups[group]) <= list_words_; });
}

void StepStage::start(DeviceProgram& program, const Step& step) {
  if (fits(program, step)) {
    pack(program, step.groups);
  } else {
    send_ahead(program, step);
    std::vector<GroupStep> rest;
    for (const GroupStep& group : step.groups) rest.push_back(without_slot_updates(group));
    pack(program, rest);
  }
  DeviceStream& main = state_.main();
  main.wait(uploaded_);
  started_.record(main.get());
  load(program, step);
  move_experts(program, step);
  program.enqueue(bucket_of(step, program.prepared().plan.step), counts_);
  bring_results(program, step);
  bring_expert_counts(program, step);
  finished_.record(main.get());
}

// ---- Slot lists ahead of the step ---------------------------------------------------------------

void StepStage::send_ahead(const DeviceProgram& program, const Step& step) {
  for (const int group : groups_of(program.ranks())) {
    const SlotPieces pieces(step.groups[group], list_words_);
    for (size_t i = 0; i < pieces.size(); ++i) send_piece(program, group, pieces.piece(i));
  }
}

// The words are used again for the next one: waits until the device is done with them.
void StepStage::send_piece(const DeviceProgram& program, int group, const GroupStep& piece) {
  const int64_t count = packed_step_words(piece);
  auto* const words = host_words_.as<int32_t>();
  CHECK(count * kWordBytes <= host_words_.bytes());
  pack_step(piece, program.prepared().plan.step, {words, static_cast<size_t>(count)});
  PackedStep header{};
  std::memcpy(&header, words, sizeof header);
  DeviceStream& main = state_.main();
  copy_async(device_words_.data(), words, count * kWordBytes, main.get());
  for (const CudaRank& rank : program.ranks())
    if (rank.rank / rank.tp == group)
      update_slots(main.get(), device_words_.as<int32_t>(), rank.slots, header);
  main.synchronize(kPieceTime);
}

// ---- The step -----------------------------------------------------------------------------------

// Packs the groups of this device next to each other and uploads them beside the step in front.
void StepStage::pack(const DeviceProgram& program, std::span<const GroupStep> groups) {
  packed_.clear();
  int64_t used = 0;
  auto* const words = host_words_.as<int32_t>();
  for (const int group : groups_of(program.ranks())) {
    const int64_t count = packed_step_words(groups[group]);
    CHECK((used + count) * kWordBytes <= host_words_.bytes());
    pack_step(groups[group], program.prepared().plan.step,
              {words + used, static_cast<size_t>(count)});
    Packed& packed = packed_.emplace_back(Packed{.group = group, .at = used, .header = {}});
    std::memcpy(&packed.header, words + used, sizeof packed.header);
    used += count;
  }
  copy_async(device_words_.data(), words, used * kWordBytes, state_.upload().get());
  uploaded_.record(state_.upload().get());
}

const StepStage::Packed& StepStage::packed_of(int group) const {
  return *std::find_if(packed_.begin(), packed_.end(),
                       [&](const Packed& packed) { return packed.group == group; });
}

void StepStage::load(const DeviceProgram& program, const Step& step) {
  const CudaStream stream = state_.main().get();
  counts_.clear();
  for (size_t local = 0; local < program.ranks().size(); ++local) {
    const CudaRank& rank = program.ranks()[local];
    const Packed& packed = packed_of(rank.rank / rank.tp);
    const int32_t* words = device_words_.as<int32_t>() + packed.at;
    load_step(stream, words, rank.step, rank.slots, packed.header);
    update_slots(stream, words, rank.slots, packed.header);
    for (const DeviceProgram::KvBuffer& kv : program.kv(local)) {
      swap_blocks(kv, step.groups[packed.group], stream);
      copy_blocks(stream, words, packed.header, kv.data, kv.block_bytes);
    }
    counts_.push_back(packed.header.counts);
  }
}

void StepStage::bring_results(const DeviceProgram& program, const Step& step) {
  const CudaStream stream = state_.main().get();
  const int64_t max_rows = program.prepared().program.limits.max_rows;
  for (size_t local = 0; local < program.ranks().size(); ++local) {
    const CudaRank& rank = program.ranks()[local];
    if (rank.result.sampled == nullptr) continue;
    const GroupStep& group = step.groups[rank.rank / rank.tp];
    const auto rows = static_cast<int64_t>(group.rows.size());
    auto* const to = results_.as<int32_t>() + static_cast<int64_t>(local) * max_rows * kResultWords;
    const int64_t pitch = max_rows * kWordBytes;
    copy_rows_async(to, pitch, rank.result.sampled, pitch, rows * kWordBytes, 2, stream);
    if (!wants_top(group)) continue;
    const int64_t top_pitch = pitch * kMaxTopLogprobs;
    copy_rows_async(to + 2 * max_rows, top_pitch, rank.result.top_tokens, top_pitch,
                    rows * kMaxTopLogprobs * kWordBytes, 2, stream);
  }
}

void StepStage::collect(const DeviceProgram& program, const Step& step, StepResult& result) {
  const int64_t max_rows = program.prepared().program.limits.max_rows;
  for (size_t local = 0; local < program.ranks().size(); ++local) {
    const CudaRank& rank = program.ranks()[local];
    const int index = rank.rank / rank.tp;
    const GroupStep& group = step.groups[index];
    StepResult::Group& to = result.groups[index];
    collect_experts(program, local, step, to);
    if (rank.result.sampled == nullptr) continue;
    const auto* words =
        results_.as<int32_t>() + static_cast<int64_t>(local) * max_rows * kResultWords;
    const size_t rows = group.rows.size();
    if (rows == 0) continue;
    std::memcpy(to.sampled.data(), words, rows * kWordBytes);
    std::memcpy(to.logprobs.data(), words + max_rows, rows * kWordBytes);
    collect_top(program, group, words + 2 * max_rows, to);
    collect_logits(program, local, group, to);
  }
}

void StepStage::collect_top(const DeviceProgram& program, const GroupStep& step,
                            const int32_t* words, StepResult::Group& group) {
  const PreparedProgram& prepared = program.prepared();
  const int32_t* logprobs = words + prepared.program.limits.max_rows * kMaxTopLogprobs;
  for (size_t row = 0; row < step.rows.size(); ++row) {
    const int count = std::min(num_top_logprobs(step.rows[row]), prepared.sample_vocab);
    if (count == 0) continue;
    group.top_logprobs.push_back(static_cast<int32_t>(row));
    group.top_logprobs.push_back(count);
    const size_t first = row * kMaxTopLogprobs;
    for (size_t i = first; i < first + count; ++i) {
      group.top_logprobs.push_back(words[i]);
      group.top_logprobs.push_back(logprobs[i]);
    }
  }
}

// Runs of asked rows, as many at once as the page-locked buffer takes.
void StepStage::collect_logits(const DeviceProgram& program, size_t local_rank,
                               const GroupStep& step, StepResult::Group& group) {
  const int64_t vocab = program.prepared().sample_vocab;
  const int64_t pitch = logits_of(program.prepared())->cols() * kWordBytes;
  const int64_t most = std::max<int64_t>(1, kBounceBytes / (vocab * kWordBytes));
  const auto rows = static_cast<int64_t>(step.rows.size());
  const auto asked = [&](int64_t row) { return (step.rows[row].flags & kRowLogits) != 0; };
  for (int64_t begin = 0; begin < rows;) {
    int64_t end = begin;
    while (end < rows && end - begin < most && asked(end)) ++end;
    if (end == begin) {
      ++begin;
      continue;
    }
    copy_rows_async(bounce_.data(), vocab * kWordBytes, program.logits(local_rank) + begin * pitch,
                    pitch, vocab * kWordBytes, end - begin, state_.upload().get());
    state_.upload().synchronize(kPieceTime);
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* words = bounce_.as<int32_t>() + (row - begin) * vocab;
      group.logits.push_back(static_cast<int32_t>(row));
      group.logits.insert(group.logits.end(), words, words + vocab);
    }
    begin = end;
  }
}

// ---- Experts ------------------------------------------------------------------------------------

// The weights of experts first, then the tables that name them, before any op of the step.
void StepStage::move_experts(const DeviceProgram& program, const Step& step) {
  const CudaStream stream = state_.main().get();
  for (const CudaRank& rank : program.ranks())
    for_each_expert_copy(program.prepared().program, program.expert_weights(), step, rank.rank,
                         [&](std::byte* to, const std::byte* from, int64_t bytes) {
                           copy_async(to, from, bytes, stream);
                         });
  if (step.expert_tables.empty()) return;
  ExpertTables& tables = state_.expert_tables();
  tables.apply(step);
  const int64_t words = tables.limits().count * kExpertWays;
  for (size_t at = 1; at < step.expert_tables.size(); at += static_cast<size_t>(words) + 1) {
    const int64_t table = step.expert_tables[at];
    int32_t* const staged = expert_tables_.as<int32_t>() + table * words;
    std::ranges::copy(tables.slots(table), staged);
    copy_async(state_.device_expert_tables() + table * words, staged, words * kWordBytes, stream);
  }
}

void StepStage::bring_expert_counts(const DeviceProgram& program, const Step& step) {
  if ((step.flags & kStepExpertCounts) == 0) return;
  const ExpertLimits& limits = program.prepared().program.limits.experts;
  const int64_t count = limits.tables * limits.count;
  for (size_t local = 0; local < program.ranks().size(); ++local)
    if (const ExpertStates& experts = program.ranks()[local].experts; experts.counts != nullptr)
      take_expert_counts(state_.main().get(), experts, count,
                         expert_counts_.as<int32_t>() + static_cast<int64_t>(local) * count);
}

void StepStage::collect_experts(const DeviceProgram& program, size_t local_rank, const Step& step,
                                StepResult::Group& group) {
  const CudaRank& rank = program.ranks()[local_rank];
  if (rank.experts.counts == nullptr) return;
  if ((step.flags & kStepExpertCounts) != 0) {
    const ExpertLimits& limits = program.prepared().program.limits.experts;
    const int64_t count = limits.tables * limits.count;
    const int32_t* words = expert_counts_.as<int32_t>() + static_cast<int64_t>(local_rank) * count;
    group.expert_counts.assign(words, words + count);
  }
  const GroupStep& own = step.groups[rank.rank / rank.tp];
  if (own.returns_expert_choices) collect_choices(program, local_rank, own, group);
}

// Table by table, as many choices at once as the page-locked buffer takes.
void StepStage::collect_choices(const DeviceProgram& program, size_t local_rank,
                                const GroupStep& step, StepResult::Group& group) {
  constexpr int64_t kMost = kBounceBytes / kWordBytes;
  const ExpertLimits& limits = program.prepared().program.limits.experts;
  const ExpertStates& experts = program.ranks()[local_rank].experts;
  const int64_t words = step.num_tokens() * limits.choices;
  group.expert_choices.reserve(static_cast<size_t>(limits.tables * words));
  for (int64_t table = 0; table < limits.tables; ++table)
    for (int64_t begin = 0; begin < words; begin += kMost) {
      const int64_t count = std::min(words - begin, kMost);
      copy_async(bounce_.data(),
                 experts.chosen + table * experts.max_tokens * limits.choices + begin,
                 count * kWordBytes, state_.upload().get());
      state_.upload().synchronize(kPieceTime);
      const int32_t* chosen = bounce_.as<int32_t>();
      group.expert_choices.insert(group.expert_choices.end(), chosen, chosen + count);
    }
}

}  // namespace nanoweave
