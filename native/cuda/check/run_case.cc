// One run of a case: equal data for both sides, the host op on rank threads, the CUDA kernels in
// the emulation, then the comparison.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "cpu/matmul.h"
#include "cuda/check/doubles.h"
#include "cuda/check/guarded.h"
#include "cuda/check/op_case.h"
#include "cuda/emulation/async_proxy.h"
#include "cuda/load_step.h"

namespace nanoweave::check {

namespace {

constexpr int64_t kSpareRows = 3;  // the buffers hold more rows than the step has

// One side's memory: a heap per rank for arena buffers, and the other buffers of each rank.
struct Memory {
  std::vector<GuardedHeap> heaps;
  std::vector<std::vector<GuardedMemory>> own;  // [rank][buffer]; empty for arena buffers

  std::byte* at(const Program& program, int buffer, int rank) const {
    const BufferDesc& desc = program.buffers[buffer];
    return desc.space == Space::kArena ? heaps[rank].data() + desc.offset
                                       : own[rank][buffer].data();
  }
};

class CaseRun {
 public:
  CaseRun(const OpCase& op_case, uint64_t seed);
  CaseResult run();

 private:
  void make_steps();
  std::vector<int32_t> random_expert_tables() const;
  ExpertStates make_experts(int rank);
  void lay_out_arena();
  Memory make_memory(uint64_t seed) const;
  void fill(std::byte* to, const CaseBuffer& buffer, int rank, std::mt19937_64& random) const;
  void poison_unseen(std::byte* kv, const BufferDesc& desc, int rank) const;

  void run_host();
  void run_host_rank(int rank, HostComm& comm);
  Tensor host_tensor(const View& view, int rank, const GroupStep& step,
                     std::vector<std::vector<std::byte>>& packed) const;

  void run_cuda();
  void open_doubles(const std::vector<int>& device_of);
  void run_machine();
  void compare(CaseResult& result) const;
  void compare_samples(CaseResult& result) const;
  void compare_experts(CaseResult& result);
  bool check_fault(CaseResult& result) const;
  bool check_calls(CaseResult& result) const;
  CudaBucket bucket() const;

  const OpCase& case_;
  const uint64_t seed_;
  Program program_;
  std::unique_ptr<Step> step_;
  std::vector<int64_t> sizes_;
  int64_t heap_bytes_ = 0;
  Memory host_, cuda_;
  std::vector<std::unique_ptr<SlotTable>> host_slots_;
  std::vector<ExpertTables> host_experts_;
  StepResult host_result_;
  std::string host_error_;

  // Device state that compare() looks at.
  std::vector<GuardedMemory> slot_params_, slot_counts_, slot_bias_, slot_allowed_, step_memory_;
  std::vector<GuardedMemory> expert_tables_, expert_counts_, expert_choices_, taken_counts_;
  std::vector<std::vector<GuardedMemory>> results_;  // [rank]: sampled, logprobs, tokens, logprobs
  std::vector<GuardedMemory> workspaces_;
  EmulatedSideStreams side_streams_;
  std::unique_ptr<NcclWorld> nccl_;
  std::unique_ptr<CublasLt> cublaslt_;
  std::string nccl_error_;  // what the deadline found
  std::string calls_;       // of the doubles
  std::array<DeviceFault, kMaxRanks> faults_{};
  uint32_t abort_ = 0;
};

std::vector<int32_t> encode(const std::vector<CaseStep>& steps, int32_t flags,
                            const std::vector<int32_t>& expert_tables) {
  std::vector<int32_t> table, body;
  std::vector<int32_t> words = {kStepVersion, 1, flags, 0, 0};
  struct Entry {
    StepSection kind;
    int group;
    const std::vector<int32_t>* section;
  };
  std::vector<Entry> entries;
  for (size_t group = 0; group < steps.size(); ++group) {
    const CaseStep& step = steps[group];
    const std::pair<StepSection, const std::vector<int32_t>*> sections[] = {
        {StepSection::kPartBounds, &step.part_bounds},
        {StepSection::kTokens, &step.tokens},
        {StepSection::kPositions, &step.positions},
        {StepSection::kKvSlots, &step.kv_slots},
        {StepSection::kSeqStarts, &step.seq_starts},
        {StepSection::kSeqLens, &step.seq_lens},
        {StepSection::kBlockTables, &step.block_tables},
        {StepSection::kRows, &step.rows},
        {StepSection::kSlotParams, &step.slot_params},
        {StepSection::kSlotHistory, &step.slot_history},
        {StepSection::kSlotBias, &step.slot_bias},
        {StepSection::kAllowedTokens, &step.allowed_tokens},
        {StepSection::kBlockCopies, &step.block_copies}};
    for (const auto& [kind, section] : sections)
      if (!section->empty()) entries.push_back({kind, static_cast<int>(group), section});
  }
  if (!expert_tables.empty()) entries.push_back({StepSection::kExpertTables, 0, &expert_tables});
  words[4] = static_cast<int32_t>(entries.size());
  auto offset = static_cast<int32_t>(kStepHeaderWords + entries.size() * kStepSectionWords);
  for (const Entry& entry : entries) {
    const auto length = static_cast<int32_t>(entry.section->size());
    words.insert(words.end(), {static_cast<int32_t>(entry.kind), entry.group, offset, length});
    offset += length;
  }
  for (const Entry& entry : entries)
    words.insert(words.end(), entry.section->begin(), entry.section->end());
  return words;
}

CaseRun::CaseRun(const OpCase& op_case, uint64_t seed)
    : case_(op_case), seed_(seed), program_(op_case.program) {
  make_steps();
  lay_out_arena();
  host_ = make_memory(seed);
  cuda_ = make_memory(seed);
}

void CaseRun::make_steps() {
  std::vector<CaseStep> steps = case_.steps;
  Limits& limits = program_.limits;
  for (CaseStep& step : steps) {
    const auto tokens = static_cast<int32_t>(step.tokens.size());
    if (step.part_bounds.empty()) {
      step.part_bounds.assign(program_.parts + 1, tokens);
      step.part_bounds[0] = 0;
    }
    limits.max_tokens = std::max<int64_t>(limits.max_tokens, tokens + kSpareRows);
    limits.max_rows =
        std::max<int64_t>(limits.max_rows, static_cast<int64_t>(step.rows.size()) / 4 + kSpareRows);
    limits.max_seqs =
        std::max<int64_t>(limits.max_seqs, static_cast<int64_t>(step.seq_lens.size()));
  }
  for (const CaseBuffer& buffer : case_.buffers) {
    program_.buffers.push_back(buffer.desc);
    for (Dim& dim : program_.buffers.back().shape) {
      if (dim.symbol == Symbol::kTokens) dim.size = limits.max_tokens;
      if (dim.symbol == Symbol::kRows) dim.size = limits.max_rows;
    }
  }
  const bool has_experts = limits.experts.tables > 0;
  step_ =
      parse_step(program_, encode(steps, has_experts ? kStepExpertChoices : 0,
                                  has_experts ? random_expert_tables() : std::vector<int32_t>()));
}

// A step's section: every table anew.
std::vector<int32_t> CaseRun::random_expert_tables() const {
  const ExpertLimits& limits = program_.limits.experts;
  std::mt19937_64 random(seed_);
  std::vector<int32_t> section = {0};
  uint32_t hash = 0;
  for (int32_t table = 0; table < limits.tables; ++table) {
    std::vector<int32_t> slots(static_cast<size_t>(limits.count * kExpertWays));
    for (int32_t& slot : slots)
      slot = static_cast<int32_t>(random() % static_cast<uint64_t>(limits.slots));
    hash ^= hash_expert_table(table, slots);
    section.push_back(table);
    section.insert(section.end(), slots.begin(), slots.end());
  }
  section[0] = static_cast<int32_t>(hash);
  return section;
}

void CaseRun::lay_out_arena() {
  std::vector<int64_t> offsets;
  for (const BufferDesc& buffer : program_.buffers)
    if (buffer.space == Space::kArena) sizes_.push_back(buffer.max_bytes());
  offsets.resize(sizes_.size());
  heap_bytes_ =
      GuardedHeap::lay_out(sizes_.data(), static_cast<int>(sizes_.size()), offsets.data());
  size_t next = 0;
  for (BufferDesc& buffer : program_.buffers)
    if (buffer.space == Space::kArena) buffer.offset = offsets[next++];
}

void CaseRun::fill(std::byte* to, const CaseBuffer& buffer, int rank,
                   std::mt19937_64& random) const {
  const int64_t count = buffer.desc.max_bytes() / dtype_bytes(buffer.desc.dtype);
  if (buffer.values) return buffer.values(to, count, rank, random);
  if (buffer.fill == Fill::kPoison) return;
  std::vector<float> values(count);
  for (float& value : values) {
    const auto bits = static_cast<int64_t>(random() >> 40);  // 24 bits
    value = buffer.fill == Fill::kIntegers
                ? static_cast<float>(bits % 17 - 8)
                : buffer.scale * (static_cast<float>(bits) * 0x1p-23f - 1.0f);
  }
  store_floats(buffer.desc.dtype, values.data(), count, to);
}

Memory CaseRun::make_memory(uint64_t seed) const {
  Memory memory;
  std::vector<int64_t> offsets;
  for (const BufferDesc& buffer : program_.buffers)
    if (buffer.space == Space::kArena) offsets.push_back(buffer.offset);
  for (int rank = 0; rank < program_.world; ++rank) {
    memory.heaps.emplace_back(heap_bytes_, sizes_.data(), offsets.data(),
                              static_cast<int>(sizes_.size()));
    memory.own.emplace_back(program_.buffers.size());
    for (size_t i = 0; i < program_.buffers.size(); ++i) {
      BufferDesc& desc = const_cast<BufferDesc&>(program_.buffers[i]);
      if (desc.space != Space::kArena) memory.own[rank][i] = GuardedMemory(desc.max_bytes(), 16);
      CaseBuffer buffer = case_.buffers[i];
      buffer.desc = desc;
      const int stream = buffer.same_on_all_ranks ? 0
                         : buffer.same_in_group   ? rank / program_.tp
                                                  : rank;
      std::mt19937_64 random(seed * 7919 + i * 131 + stream);
      fill(memory.at(program_, static_cast<int>(i), rank), buffer, rank, random);
      const std::string& kind = program_.ops.back().kind;
      if (desc.space == Space::kKv && (kind == "attention" || kind == "mla_attention"))
        poison_unseen(memory.at(program_, static_cast<int>(i), rank), desc, rank);
    }
  }
  return memory;
}

// Keys and values no sequence of the step has are not numbers: whatever reads them shows.
void CaseRun::poison_unseen(std::byte* kv, const BufferDesc& desc, int rank) const {
  const Limits& limits = program_.limits;
  const GroupStep& step = step_->groups[rank / program_.tp];
  std::vector<bool> seen(limits.num_blocks * limits.block_size);
  for (int64_t s = 0; s < step.num_seqs(); ++s)
    for (int64_t key = 0; key < step.seq_lens[s]; ++key) {
      const int32_t block = step.block_tables[s * step.block_table_width + key / limits.block_size];
      seen[block * limits.block_size + key % limits.block_size] = true;
    }
  const int64_t head_dim = desc.shape[4].size, heads = desc.shape[1].size * desc.shape[2].size;
  const int64_t row_bytes = head_dim * dtype_bytes(desc.dtype);
  for (int64_t slot = 0; slot < static_cast<int64_t>(seen.size()); ++slot)
    for (int64_t head = 0; head < heads && !seen[slot]; ++head) {
      const int64_t row =
          (slot / limits.block_size * heads + head) * limits.block_size + slot % limits.block_size;
      std::memset(kv + row * row_bytes, 0xff, static_cast<size_t>(row_bytes));
    }
}

// ---- Host ---------------------------------------------------------------------------------------

Tensor CaseRun::host_tensor(const View& view, int rank, const GroupStep& step,
                            std::vector<std::vector<std::byte>>& packed) const {
  if (view.buffer < 0) return {};
  const BufferDesc& desc = program_.buffers[view.buffer];
  Tensor tensor{.data = host_.at(program_, view.buffer, rank),
                .dtype = desc.dtype,
                .rows = desc.max_rows(),
                .cols = desc.cols()};
  if (desc.layout == Layout::kMatmul) {
    packed.emplace_back(packed_bytes(desc.dtype, tensor.rows, tensor.cols));
    pack_block(desc.dtype, tensor.data, tensor.row_bytes(), tensor.rows, tensor.cols,
               packed.back().data(), tensor.rows, tensor.cols, 0, 0);
    tensor.data = packed.back().data();
  }
  const Symbol symbol = desc.row_symbol();
  if (symbol == Symbol::kRows) tensor.rows = static_cast<int64_t>(step.rows.size());
  if (symbol == Symbol::kTokens) {
    const int64_t begin = view.part < 0 ? 0 : step.part_bounds[view.part];
    const int64_t end = view.part < 0 ? step.num_tokens() : step.part_bounds[view.part + 1];
    tensor.data += begin * tensor.row_bytes();
    tensor.rows = end - begin;
  }
  return tensor;
}

void CaseRun::run_host_rank(int rank_index, HostComm& comm) {
  ThreadPool pool(1, false);
  Scratch scratch;
  HostRank rank{.rank = rank_index,
                .world = program_.world,
                .tp = program_.tp,
                .isa = CpuIsa::kPortable,
                .deterministic = true,
                .pool = &pool,
                .comm = &comm,
                .scratch = &scratch,
                .slots = host_slots_[rank_index].get(),
                .experts = &host_experts_[rank_index],
                .result = rank_index % program_.tp == 0 ? &host_result_ : nullptr};
  const GroupStep& step = step_->groups[rank.group()];
  rank.slots->apply(step);
  for (const OpDesc& op : program_.ops) {
    OpDesc host_op = op;
    if (!case_.host_attrs.empty()) host_op.attrs = Json::parse(case_.host_attrs);
    const HostKernel kernel = prepare_host_op(program_, host_op);
    std::vector<std::vector<std::byte>> packed;
    std::vector<Tensor> in, out;
    for (const View& view : op.inputs) in.push_back(host_tensor(view, rank_index, step, packed));
    for (const View& view : op.outputs) out.push_back(host_tensor(view, rank_index, step, packed));
    const int part = op.part();
    const RowSpan tokens = part < 0 ? RowSpan{0, step.num_tokens()}
                                    : RowSpan{step.part_bounds[part], step.part_bounds[part + 1]};
    if (out[0].rows == 0 && !find_op(op.kind)->across_groups) continue;
    for (int i = 0; i < case_.repeats; ++i)
      kernel({.rank = rank,
              .step = step,
              .step_id = 1,
              .label = op.label,
              .tokens = tokens,
              .in = in,
              .out = out});
  }
}

void CaseRun::run_host() {
  std::vector<std::byte*> heaps;
  for (const GuardedHeap& heap : host_.heaps) heaps.push_back(heap.data());
  HostComm comm(heaps, heap_bytes_, std::chrono::milliseconds(60'000), true);
  host_result_.groups.resize(step_->groups.size());
  std::vector<std::thread> threads;
  const ExpertLimits& experts = program_.limits.experts;
  for (int rank = 0; rank < program_.world; ++rank) {
    host_slots_.push_back(std::make_unique<SlotTable>(program_.limits.num_slots));
    host_experts_.emplace_back(experts).apply(*step_);
  }
  for (size_t group = 0; group < step_->groups.size(); ++group)
    host_result_.groups[group].expert_choices.assign(
        static_cast<size_t>(experts.tables * step_->groups[group].num_tokens() * experts.choices),
        -1);
  std::vector<std::string> errors(program_.world);
  for (int rank = 0; rank < program_.world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        run_host_rank(rank, comm);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
        comm.fault({.rank = rank});
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors)
    if (!error.empty()) host_error_ = error;
}

// ---- CUDA ---------------------------------------------------------------------------------------

CudaBucket CaseRun::bucket() const {
  CudaBucket bucket{.decode_only = true};
  for (const GroupStep& step : step_->groups) {
    bucket.tokens = std::max(bucket.tokens, step.num_tokens());
    for (int part = 0; part < program_.parts; ++part)
      bucket.part_tokens = std::max<int64_t>(bucket.part_tokens,
                                             step.part_bounds[part + 1] - step.part_bounds[part]);
    bucket.rows = std::max(bucket.rows, static_cast<int64_t>(step.rows.size()));
    bucket.seqs = std::max(bucket.seqs, step.num_seqs());
    for (int64_t s = 0; s < step.num_seqs(); ++s)
      if (step.seq_starts[s + 1] - step.seq_starts[s] > kDecodeRows) bucket.decode_only = false;
  }
  if (case_.deterministic) bucket.decode_only = false;
  return bucket;
}

template <typename T>
GuardedMemory zeroed(int64_t count) {
  GuardedMemory memory(std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)),
                       static_cast<int64_t>(alignof(T)));
  std::memset(memory.data(), 0, static_cast<size_t>(memory.bytes()));
  return memory;
}

ExpertStates CaseRun::make_experts(int rank) {
  const ExpertLimits& limits = program_.limits.experts;
  if (limits.tables == 0) return {};
  ExpertTables tables(limits);
  tables.apply(*step_);
  const int64_t counts = limits.tables * limits.count;
  expert_tables_.emplace_back(counts * kExpertWays * 4, 4);
  auto* to = expert_tables_.back().as<int32_t>();
  for (int64_t table = 0; table < limits.tables; ++table)
    to = std::ranges::copy(tables.slots(table), to).out;
  ExpertStates states{.tables = expert_tables_.back().as<int32_t>(),
                      .counts = nullptr,
                      .chosen = nullptr,
                      .max_tokens = program_.limits.max_tokens};
  if (rank % program_.tp != 0) return states;
  expert_counts_.push_back(zeroed<ExpertCount>(counts));
  expert_choices_.emplace_back(limits.tables * states.max_tokens * limits.choices * 4, 4);
  std::memset(expert_choices_.back().data(), 0xff,
              static_cast<size_t>(expert_choices_.back().bytes()));
  taken_counts_.emplace_back(counts * 4, 4);
  states.counts = expert_counts_.back().as<ExpertCount>();
  states.chosen = expert_choices_.back().as<int32_t>();
  return states;
}

void CaseRun::run_cuda() {
  emulation::Machine& machine = emulation::Machine::instance();
  machine.seed(seed_);
  const Limits& limits = program_.limits;
  const int world = program_.world;
  std::vector<int> device_of = case_.devices;
  device_of.resize(world, 0);
  const int num_devices = 1 + *std::max_element(device_of.begin(), device_of.end());

  CudaPlan plan{.deterministic = case_.deterministic,
                .step = step_plan_config(limits, case_.deterministic)};
  std::vector<GuardedMemory> packed_memory;
  std::vector<PackedStep> headers;
  for (const GroupStep& step : step_->groups) {
    packed_memory.emplace_back(packed_step_words(step) * 4, 16);
    pack_step(step, plan.step,
              {packed_memory.back().as<int32_t>(), static_cast<size_t>(packed_step_words(step))});
    headers.push_back(*packed_memory.back().as<PackedStep>());
  }

  std::vector<GuardedMemory> pads;
  CommView comm{};
  for (int rank = 0; rank < world; ++rank) {
    pads.push_back(zeroed<SignalPad>(1));
    auto* pad = pads.back().as<SignalPad>();
    for (auto& slot : pad->epochs)
      for (uint32_t& epoch : slot) epoch = case_.first_epoch;
    for (auto& slot : pad->flags)
      for (auto& block : slot)
        for (FlagLine& line : block) line.epoch = case_.first_epoch;
    comm.heaps[rank] = cuda_.heaps[rank].data();
    comm.pads[rank] = pad;
  }
  std::vector<emulation::Multicast> multicasts;
  if (case_.multicast)
    for (int first = 0; first < world; first += program_.tp) {
      void* base = mmap(nullptr, static_cast<size_t>(heap_bytes_), PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      emulation::Multicast range{.base = static_cast<std::byte*>(base),
                                 .bytes = static_cast<size_t>(heap_bytes_),
                                 .heaps = {}};
      for (int rank = first; rank < first + program_.tp; ++rank) {
        range.heaps.push_back(comm.heaps[rank]);
        comm.multicast[rank] = range.base;
      }
      machine.add_multicast(range);
      multicasts.push_back(range);
    }
  comm.abort = &abort_;
  comm.faults = faults_.data();
  comm.timeout_ns = case_.timeout_ns;

  std::vector<std::vector<CudaRank>> ranks(num_devices);
  size_t max_local_ranks = 1;
  for (int rank = 0; rank < world; ++rank) {
    slot_params_.push_back(zeroed<SlotParams>(limits.num_slots));
    slot_counts_.push_back(zeroed<uint16_t>(limits.num_slots * limits.vocab_size));
    slot_bias_.push_back(zeroed<float>(limits.num_slots * limits.vocab_size));
    slot_allowed_.push_back(zeroed<uint32_t>(limits.num_slots * mask_words(limits.vocab_size)));
    step_memory_.emplace_back(device_step_bytes(limits), 256);
    results_.emplace_back();
    results_.back().emplace_back(limits.max_rows * 4, 4);
    results_.back().emplace_back(limits.max_rows * 4, 4);
    results_.back().emplace_back(limits.max_rows * kMaxTopLogprobs * 4, 4);
    results_.back().emplace_back(limits.max_rows * kMaxTopLogprobs * 4, 4);
    CudaRank& made = ranks[device_of[rank]].emplace_back();
    made = {.rank = rank,
            .tp = program_.tp,
            .step = place_device_step(limits, step_memory_.back().data()),
            .slots = {.params = slot_params_.back().as<SlotParams>(),
                      .counts = slot_counts_.back().as<uint16_t>(),
                      .bias = slot_bias_.back().as<float>(),
                      .allowed = slot_allowed_.back().as<uint32_t>(),
                      .vocab_size = static_cast<int32_t>(limits.vocab_size)},
            .result = {},
            .experts = make_experts(rank)};
    if (rank % program_.tp == 0)
      made.result = {.sampled = results_.back()[0].as<int32_t>(),
                     .logprobs = results_.back()[1].as<float>(),
                     .top_tokens = results_.back()[2].as<int32_t>(),
                     .top_logprobs = results_.back()[3].as<float>()};
    max_local_ranks = std::max(max_local_ranks, ranks[device_of[rank]].size());
  }

  open_doubles(device_of);
  plan.cublaslt_missing = case_.cublaslt ? "" : "the case has none";
  std::vector<emulation::Stream> streams(num_devices);
  // A launch that is refused leaves what was enqueued before it.
  struct DropRest {
    ~DropRest() { emulation::Machine::instance().drop_everything(); }
  } const drop_rest;
  for (int device = 0; device < num_devices; ++device) {
    emulation::Stream* stream = &streams[device];
    if (device < static_cast<int>(case_.late_us.size()))
      stream->not_before_ns =
          machine.clock_ns() + static_cast<uint64_t>(case_.late_us[device] * 1000);
    if (device < static_cast<int>(case_.dead.size())) stream->dead = case_.dead[device];
    for (const CudaRank& rank : ranks[device]) {
      const int group = rank.rank / rank.tp;
      const auto* packed = packed_memory[group].as<int32_t>();
      load_step(stream, packed, rank.step, rank.slots, headers[group]);
      update_slots(stream, packed, rank.slots, headers[group]);
      for (size_t i = 0; i < program_.buffers.size(); ++i) {
        const BufferDesc& desc = program_.buffers[i];
        if (desc.space == Space::kKv)
          copy_blocks(stream, packed, headers[group],
                      cuda_.at(program_, static_cast<int>(i), rank.rank),
                      desc.cols() * dtype_bytes(desc.dtype));
      }
    }
    for (size_t index = 0; index < program_.ops.size(); ++index) {
      const OpDesc& op = program_.ops[index];
      const CudaKernel kernel = prepare_cuda_op(program_, op, plan);
      std::vector<StepCounts> counts;
      if (case_.counts_known)
        for (const CudaRank& rank : ranks[device])
          counts.push_back(headers[rank.rank / rank.tp].counts);
      std::vector<CudaOperands> operands;
      for (const CudaRank& rank : ranks[device]) {
        CudaOperands& at = operands.emplace_back();
        for (size_t i = 0; i < op.inputs.size(); ++i)
          if (op.inputs[i].buffer >= 0)
            at.in[i] = cuda_.at(program_, op.inputs[i].buffer, rank.rank);
        for (size_t i = 0; i < op.outputs.size(); ++i)
          at.out[i] = cuda_.at(program_, op.outputs[i].buffer, rank.rank);
      }
      const int64_t workspace =
          kernel.workspace_bytes ? kernel.workspace_bytes(case_.device, bucket()) : 0;
      workspaces_.emplace_back(workspace, 256);
      std::memset(workspaces_.back().data(), 0,
                  static_cast<size_t>(std::min(workspace, kWorkspaceCounterBytes)));
      for (int i = 0; i < case_.repeats; ++i)
        kernel.launch({.stream = stream,
                       .device = case_.device,
                       .ranks = ranks[device],
                       .operands = operands,
                       .bucket = bucket(),
                       .sm_budget = case_.sm_budget,
                       .workspace = workspaces_.back().data(),
                       .op_index = static_cast<int>(index),
                       .counts = counts,
                       .cublaslt = cublaslt_.get(),
                       .comm = &comm,
                       .world = world,
                       .comm_slot = 1,
                       .max_local_ranks = static_cast<int>(max_local_ranks),
                       .nccl_missing = nccl_ ? "" : "the case has none",
                       .nccl = nccl_.get()});
    }
    for (const CudaRank& rank : ranks[device])
      if (rank.experts.counts != nullptr)
        take_expert_counts(stream, rank.experts, limits.experts.tables * limits.experts.count,
                           taken_counts_[rank.rank / rank.tp].as<int32_t>());
  }
  run_machine();
  for (const emulation::Multicast& range : multicasts) {
    machine.remove_multicast(range.base);
    munmap(range.base, range.bytes);
  }
}

void CaseRun::open_doubles(const std::vector<int>& device_of) {
  if (case_.nccl)
    nccl_ = std::make_unique<NcclWorld>(nccl_double().library,
                                        NcclOptions{.tp = program_.tp,
                                                    .devices = device_of,
                                                    .timeout = std::chrono::milliseconds(10'000),
                                                    .max_blocks = 0,
                                                    .set_device = [](int) {},
                                                    .side_streams = side_streams_.make()});
  if (case_.cublaslt) cublaslt_ = std::make_unique<CublasLt>(cublaslt_double().library);
  if (case_.nccl) nccl_double().log();
  if (case_.cublaslt) cublaslt_double().log();
}

// With communicators a rank that never comes is for the host to notice: past the deadline it looks
// for the cause and aborts all of them.
void CaseRun::run_machine() {
  std::atomic<bool> is_over{false};
  std::thread watch;
  if (case_.nccl)
    watch = std::thread([&] {
      const auto deadline = std::chrono::steady_clock::now() +
                            (case_.expects_fault ? std::chrono::milliseconds(100)
                                                 : std::chrono::milliseconds(60'000));
      while (!is_over && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (is_over) return;
      try {
        nccl_->check();
        nccl_error_ = "late";
      } catch (const EngineError& error) {
        nccl_error_ =
            std::string(error_code_name(error.code)) + " rank " + std::to_string(error.rank);
      }
      nccl_->abort();
      side_streams_.give_up();
    });
  emulation::lose_copies(case_.lost_boxes);
  emulation::Machine::instance().run();
  is_over = true;
  if (watch.joinable()) watch.join();
  if (case_.nccl) calls_ += nccl_double().log();
  if (case_.cublaslt) calls_ += cublaslt_double().log();
}

// ---- Comparison ---------------------------------------------------------------------------------

struct Difference {
  double squared = 0, reference = 0, largest = 0, largest_reference = 0;
  int64_t wrong_bits = 0, first_wrong = -1;
};

Difference differ(const BufferDesc& desc, const std::byte* want, const std::byte* got) {
  Difference difference;
  const int bytes = dtype_bytes(desc.dtype);
  const int64_t count = desc.max_bytes() / bytes;
  const bool is_float = desc.dtype != DType::kI32 && desc.dtype != DType::kU8;
  for (int64_t i = 0; i < count; ++i) {
    const bool same = std::memcmp(want + i * bytes, got + i * bytes, bytes) == 0;
    float a = 0, b = 0;
    if (is_float) {
      load_floats(desc.dtype, want + i * bytes, 1, &a);
      load_floats(desc.dtype, got + i * bytes, 1, &b);
    }
    if (!same) {
      ++difference.wrong_bits;
      if (difference.first_wrong < 0) difference.first_wrong = i;
      const double error =
          is_float && std::isfinite(a) ? std::abs(double{a} - double{b}) : INFINITY;
      difference.squared += error * error;
      difference.largest = std::isnan(error) ? INFINITY : std::max(difference.largest, error);
    }
    if (std::isfinite(a)) {
      difference.reference += double{a} * a;
      difference.largest_reference = std::max(difference.largest_reference, std::abs(double{a}));
    }
  }
  return difference;
}

void CaseRun::compare(CaseResult& result) const {
  for (int rank = 0; rank < program_.world; ++rank)
    for (size_t i = 0; i < program_.buffers.size(); ++i) {
      const BufferDesc& desc = program_.buffers[i];
      bool is_output = false;
      for (const OpDesc& op : program_.ops)
        for (const View& view : op.outputs) is_output |= view.buffer == static_cast<int>(i);
      const Difference difference = differ(desc, host_.at(program_, static_cast<int>(i), rank),
                                           cuda_.at(program_, static_cast<int>(i), rank));
      const double error =
          difference.squared == 0
              ? 0
              : std::sqrt(difference.squared / std::max(difference.reference, 1e-300));
      const double bound = desc.dtype == DType::kF32 ? 1e-5 : 4e-3;
      const bool close =
          error <= bound && difference.largest <= 100 * bound * difference.largest_reference;
      const bool exact = !is_output || case_.tolerance == Tolerance::kExact;
      if (exact ? difference.wrong_bits > 0 : !(difference.wrong_bits == 0 || close)) {
        char text[200];
        std::snprintf(text, sizeof text,
                      "buffer %s of rank %d: %lld elements differ, the first at [%lld, %lld], "
                      "relative error %.2e",
                      desc.name.c_str(), rank, static_cast<long long>(difference.wrong_bits),
                      static_cast<long long>(difference.first_wrong / desc.cols()),
                      static_cast<long long>(difference.first_wrong % desc.cols()), error);
        result.message = text;
        return;
      }
      result.error = std::max(result.error, error);
      if (desc.space != Space::kArena && !cuda_.own[rank][i].intact()) {
        result.message = "bytes in front of buffer " + desc.name + " were overwritten";
        return;
      }
    }
  for (const GuardedMemory& workspace : workspaces_)
    for (int64_t i = 0; i < std::min(workspace.bytes(), kWorkspaceCounterBytes); ++i)
      if (workspace.data()[i] != std::byte{0}) {
        result.message = "the workspace counters were not left zero";
        return;
      }
}

void CaseRun::compare_samples(CaseResult& result) const {
  for (int rank = 0; rank < program_.world; ++rank) {
    const int group = rank / program_.tp;
    const GroupStep& step = step_->groups[group];
    const auto* params = slot_params_[rank].as<SlotParams>();
    const auto* counts = slot_counts_[rank].as<uint16_t>();
    for (const StepRow& row : step.rows) {
      if (row.slot < 0 || (row.flags & kRowSample) == 0) continue;
      const SlotState& host = (*host_slots_[rank])[row.slot];
      if (params[row.slot].last_token != host.last_token)
        result.message = "slot " + std::to_string(row.slot) + " holds token " +
                         std::to_string(params[row.slot].last_token) + ", not " +
                         std::to_string(host.last_token);
      for (int32_t token = 0; token < program_.limits.vocab_size; ++token) {
        const auto prompt = host.prompt_counts.contains(token) ? kCountPrompt : 0;
        const auto output = host.output_counts.find(token);
        const int want = prompt | (output == host.output_counts.end() ? 0 : output->second);
        if (counts[int64_t{row.slot} * program_.limits.vocab_size + token] != want)
          result.message =
              "slot " + std::to_string(row.slot) + " miscounts token " + std::to_string(token);
      }
    }
    if (rank % program_.tp != 0) continue;
    const StepResult::Group& host = host_result_.groups[group];
    size_t at = 0;  // in host.top_logprobs
    for (size_t r = 0; r < step.rows.size(); ++r) {
      if (results_[rank][0].as<int32_t>()[r] != host.sampled[r])
        result.message = "row " + std::to_string(r) + " sampled " +
                         std::to_string(results_[rank][0].as<int32_t>()[r]) + ", not " +
                         std::to_string(host.sampled[r]);
      const float want = host.logprobs[r], got = results_[rank][1].as<float>()[r];
      if (std::isnan(want) ? !std::isnan(got)
                           : want != got && !(std::abs(want - got) < 1e-4f * (1 + std::abs(want))))
        result.message = "row " + std::to_string(r) + ": log-probability " + std::to_string(got) +
                         ", not " + std::to_string(want);
      const int top = step.rows[r].flags >> kRowTopShift & 0xff;
      if (top == 0) continue;
      CHECK(host.top_logprobs[at] == static_cast<int32_t>(r));
      const int count = host.top_logprobs[at + 1];
      for (int i = 0; i < count; ++i) {
        const int32_t token = host.top_logprobs[at + 2 + 2 * i];
        const auto logprob = std::bit_cast<float>(host.top_logprobs[at + 3 + 2 * i]);
        const int64_t place = static_cast<int64_t>(r) * kMaxTopLogprobs + i;
        const float found = results_[rank][3].as<float>()[place];
        if (results_[rank][2].as<int32_t>()[place] != token ||
            (found != logprob && !(std::abs(found - logprob) < 1e-4f * (1 + std::abs(logprob)))))
          result.message = "row " + std::to_string(r) + ": top token " + std::to_string(i) +
                           " is " + std::to_string(results_[rank][2].as<int32_t>()[place]) + " (" +
                           std::to_string(found) + "), not " + std::to_string(token) + " (" +
                           std::to_string(logprob) + ")";
      }
      at += 2 + 2 * static_cast<size_t>(count);
    }
  }
}

// Counts and choices of every group; counts begin anew when they are taken.
void CaseRun::compare_experts(CaseResult& result) {
  const ExpertLimits& limits = program_.limits.experts;
  for (size_t group = 0; group < step_->groups.size(); ++group) {
    const std::string name = "group " + std::to_string(group);
    const std::vector<int32_t> want = host_experts_[group * program_.tp].take_counts();
    if (!std::ranges::equal(want, std::span(taken_counts_[group].as<int32_t>(), want.size())))
      result.message = name + " counts other choices than the host";
    const auto* left = expert_counts_[group].as<ExpertCount>();
    if (std::any_of(left, left + want.size(), [](ExpertCount count) { return count != 0; }))
      result.message = name + " keeps counts that were taken";
    const int64_t words = step_->groups[group].num_tokens() * limits.choices;
    const int32_t* chosen = host_result_.groups[group].expert_choices.data();
    for (int64_t table = 0; table < limits.tables; ++table) {
      const int32_t* found = expert_choices_[group].as<int32_t>() +
                             table * program_.limits.max_tokens * limits.choices;
      if (!std::equal(found, found + words, chosen + table * words))
        result.message = name + " keeps other choices than the host";
    }
  }
}

bool CaseRun::check_calls(CaseResult& result) const {
  if (case_.nccl && nccl_error_.empty() == case_.expects_fault)
    result.message = case_.expects_fault ? "no communicator failed" : "NCCL: " + nccl_error_;
  if (case_.expects_calls && calls_ != *case_.expects_calls)
    result.message = "the calls were:\n" + calls_;
  return result.message.empty();
}

bool CaseRun::check_fault(CaseResult& result) const {
  if (case_.nccl) return true;  // check_calls()
  const auto is_dead = [&](int rank) {
    return case_.dead.empty() ? rank == program_.world - 1 : bool{case_.dead[case_.devices[rank]]};
  };
  int faults = 0;
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    const DeviceFault& fault = faults_[rank];
    if (fault.written == 0) continue;
    ++faults;
    if (case_.lost_boxes > 0 && fault.peer == kNoPeer && fault.rank == rank) continue;
    if (case_.expects_fault && !is_dead(rank) && is_dead(fault.peer) && fault.rank == rank)
      continue;
    result.message = "rank " + std::to_string(rank) + " reports that rank " +
                     std::to_string(fault.peer) + " is late";
    return false;
  }
  if (case_.expects_fault && (faults == 0 || abort_ == 0)) {
    result.message = "no rank reported the fault";
    return false;
  }
  return true;
}

CaseResult CaseRun::run() {
  CaseResult result;
  if (!case_.expects_fault) run_host();
  if (!host_error_.empty()) {
    result.message = "the host op failed: " + host_error_;
    return result;
  }
  run_cuda();
  if (check_calls(result) && check_fault(result) && !case_.expects_fault && case_.compare) {
    compare(result);
    for (const OpDesc& op : program_.ops)
      if (op.kind == "sample") compare_samples(result);
    if (program_.limits.experts.tables > 0) compare_experts(result);
  }
  result.ok = result.message.empty();
  return result;
}

}  // namespace

CaseResult run_case(const OpCase& op_case, uint64_t seed) {
  try {
    CaseResult result = CaseRun(op_case, seed).run();
    if (!op_case.expects_error.empty())
      result = {.ok = false, .message = "it was not refused", .error = 0};
    return result;
  } catch (const std::exception& error) {
    if (!op_case.expects_error.empty() &&
        std::string(error.what()).find(op_case.expects_error) != std::string::npos)
      return {.ok = true, .message = {}, .error = 0};
    return {.ok = false, .message = error.what(), .error = 0};
  }
}

}  // namespace nanoweave::check
