// The kernels around the ops of a step. Those in front of them take sizes from the packed header,
// which is on the device already; the host's copy of it shapes the grids.
#include <algorithm>
#include <cfloat>

#include "cuda/launch.h"
#include "cuda/load_step.h"
#include "cuda/numeric.cuh"

namespace nanoweave {

namespace {

struct LoadStepConfig {
  static constexpr int kThreads = 256;
  static constexpr unsigned kMaxBlocks = 64;
};

struct LoadStepArgs {
  const int32_t* packed;
  DeviceStep step;
  const SlotParams* slots;  // [num_slots]
};

__device__ int grid_thread() {
  return static_cast<int>(blockIdx.x * LoadStepConfig::kThreads + threadIdx.x);
}
__device__ int grid_threads() { return static_cast<int>(gridDim.x) * LoadStepConfig::kThreads; }

__device__ void spread(const int32_t* from, void* to, int words) {
  for (int i = grid_thread(); i < words; i += grid_threads())
    static_cast<int32_t*>(to)[i] = from[i];
}

__device__ void spread_segments(const LoadStepArgs& args, const PackedStep& header) {
  constexpr int kWords = sizeof(Segment) / sizeof(int32_t);
  for (int part = 0; part <= kMaxParts; ++part) {
    const PartPlan& plan = header.counts.plans[part];
    const int64_t at = int64_t{part} * args.step.max_seqs;
    spread(args.packed + header.decode[part], args.step.decode + at, plan.num_decode * kWords);
    spread(args.packed + header.prefill[part], args.step.prefill + at, plan.num_prefill * kWords);
  }
}

__global__ void __launch_bounds__(LoadStepConfig::kThreads)
    load_step_kernel(const __grid_constant__ LoadStepArgs args) {
  const auto& header = *reinterpret_cast<const PackedStep*>(args.packed);
  const DeviceStep& step = args.step;
  spread(reinterpret_cast<const int32_t*>(&header.counts), step.counts,
         sizeof(StepCounts) / sizeof(int32_t));
  for (int i = grid_thread(); i < header.counts.num_tokens; i += grid_threads()) {
    const int32_t word = args.packed[header.tokens + i];
    step.tokens[i] = word >= 0 ? word : args.slots[-(word + 1)].last_token;
  }
  spread(args.packed + header.positions, step.positions, header.counts.num_tokens);
  spread(args.packed + header.kv_slots, step.kv_slots, header.num_kv_slots);
  spread(args.packed + header.rows, step.rows, header.counts.num_rows * 4);
  const int width = header.block_table_width;
  for (int i = grid_thread(); i < header.counts.num_seqs * width; i += grid_threads())
    step.block_tables[int64_t{i / width} * step.block_table_stride + i % width] =
        args.packed[header.block_tables + i];
  spread_segments(args, header);
}

struct UpdateSlotsArgs {
  const int32_t* packed;
  SlotStates slots;
};

__device__ uint64_t as_u64(int32_t low, int32_t high) {
  return uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low);
}

// The blocks of one row of the grid set a slot: its parameters, and cleared counts and bias.
__device__ void set_slot(const UpdateSlotsArgs& args, const int32_t* words) {
  const int64_t slot = words[0];
  if (grid_thread() == 0) {
    SlotParams& params = args.slots.params[slot];
    params.seed = as_u64(words[1], words[2]);
    params.temperature = bit_cast_to<float>(words[3]);
    params.top_k = words[4];
    params.top_p = bit_cast_to<float>(words[5]);
    params.min_p = bit_cast_to<float>(words[6]);
    params.repetition_penalty = bit_cast_to<float>(words[7]);
    params.presence_penalty = bit_cast_to<float>(words[8]);
    params.frequency_penalty = bit_cast_to<float>(words[9]);
    params.has_bias = 0;
    params.has_mask = 0;
  }
  const int64_t first = slot * args.slots.vocab_size;
  for (int i = grid_thread(); i < args.slots.vocab_size; i += grid_threads()) {
    args.slots.counts[first + i] = 0;
    args.slots.bias[first + i] = 0;
  }
}

// Entries of slot_params name each slot once.
__global__ void __launch_bounds__(LoadStepConfig::kThreads)
    set_slots_kernel(const __grid_constant__ UpdateSlotsArgs args) {
  const auto& header = *reinterpret_cast<const PackedStep*>(args.packed);
  const int32_t* params = args.packed + header.slot_params;
  for (auto i = static_cast<int>(blockIdx.y); i < header.num_slot_params;
       i += static_cast<int>(gridDim.y))
    set_slot(args, params + i * kSlotParamWords);
}

// Entries add up in their order, each token in the hands of one thread, so that every rank has the
// same sum. Finite entries may add up to +Inf, which would poison the whole row.
__device__ void fill_bias(const UpdateSlotsArgs& args, const int32_t* lists, int words) {
  for (int at = 0; at + 2 <= words; at += 2 + 2 * lists[at + 1]) {
    const int64_t slot = lists[at];
    float* bias = args.slots.bias + slot * args.slots.vocab_size;
    for (int i = 0; i < lists[at + 1]; ++i) {
      const int32_t token = lists[at + 2 + 2 * i];
      if (token % LoadStepConfig::kThreads != static_cast<int>(threadIdx.x)) continue;
      bias[token] = fminf(bias[token] + bit_cast_to<float>(lists[at + 3 + 2 * i]), FLT_MAX);
    }
    if (threadIdx.x == 0) args.slots.params[slot].has_bias = 1;
  }
}

// The mask of a program with a smaller vocabulary allows no token beyond it.
__device__ void fill_allowed(const UpdateSlotsArgs& args, const int32_t* lists, int words) {
  const auto mask = static_cast<int>(mask_words(args.slots.vocab_size));
  for (int at = 0; at + 2 <= words; at += 2 + lists[at + 1]) {
    const int64_t slot = lists[at];
    const int count = lists[at + 1];
    uint32_t* allowed = args.slots.allowed + slot * mask;
    if (count > 0)
      for (int i = threadIdx.x; i < mask; i += LoadStepConfig::kThreads)
        allowed[i] = i < count ? static_cast<uint32_t>(lists[at + 2 + i]) : 0;
    if (threadIdx.x == 0) args.slots.params[slot].has_mask = count > 0 ? 1 : 0;
  }
}

// One block walks the lists {slot, count, entries…}; its threads share the entries of a list.
__global__ void __launch_bounds__(LoadStepConfig::kThreads)
    fill_slots_kernel(const __grid_constant__ UpdateSlotsArgs args) {
  const auto& header = *reinterpret_cast<const PackedStep*>(args.packed);
  const int32_t* history = args.packed + header.slot_history;
  for (int at = 0; at + 2 <= header.num_slot_history; at += 2 + history[at + 1]) {
    const int64_t first = int64_t{history[at]} * args.slots.vocab_size;
    for (int i = threadIdx.x; i < history[at + 1]; i += LoadStepConfig::kThreads)
      args.slots.counts[first + history[at + 2 + i]] |= kCountPrompt;
    __syncthreads();  // a token may stand in two lists of a slot
  }
  fill_bias(args, args.packed + header.slot_bias, header.num_slot_bias);
  fill_allowed(args, args.packed + header.allowed_tokens, header.num_allowed_tokens);
}

struct CopyBlocksArgs {
  const int32_t* packed;
  std::byte* kv;
  int64_t block_bytes;
};

// A thread moves the same bytes of every pair, so that a block copied twice is copied in order.
__global__ void __launch_bounds__(LoadStepConfig::kThreads)
    copy_blocks_kernel(const __grid_constant__ CopyBlocksArgs args) {
  const auto& header = *reinterpret_cast<const PackedStep*>(args.packed);
  const int32_t* pairs = args.packed + header.block_copies;
  const int64_t units = args.block_bytes / static_cast<int64_t>(sizeof(uint16_t));
  auto* kv = reinterpret_cast<uint16_t*>(args.kv);
  for (int64_t i = grid_thread(); i < units; i += grid_threads())
    for (int pair = 0; pair < header.num_block_copies; ++pair)
      kv[pairs[2 * pair + 1] * units + i] = kv[pairs[2 * pair] * units + i];
}

struct TakeCountsArgs {
  ExpertCount* counts;
  int32_t* to;
  int64_t count;
};

__global__ void __launch_bounds__(LoadStepConfig::kThreads)
    take_expert_counts_kernel(const __grid_constant__ TakeCountsArgs args) {
  for (int64_t i = grid_thread(); i < args.count; i += grid_threads()) {
    const ExpertCount count = args.counts[i];
    args.to[i] = count < INT32_MAX ? static_cast<int32_t>(count) : INT32_MAX;
    args.counts[i] = 0;
  }
}

LaunchShape shape_for(int64_t items, unsigned blocks_y = 1) {
  const int64_t blocks = (items + LoadStepConfig::kThreads - 1) / LoadStepConfig::kThreads;
  return {
      .blocks_x = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, LoadStepConfig::kMaxBlocks)),
      .blocks_y = blocks_y,
      .threads = LoadStepConfig::kThreads};
}

}  // namespace

void load_step(CudaStream stream, const int32_t* packed, const DeviceStep& step,
               const SlotStates& slots, const PackedStep& header) {
  const int64_t items = std::max<int64_t>(
      header.counts.num_tokens, int64_t{header.counts.num_seqs} * header.block_table_width);
  launch(load_step_kernel, shape_for(items), stream,
         LoadStepArgs{.packed = packed, .step = step, .slots = slots.params});
}

void update_slots(CudaStream stream, const int32_t* packed, const SlotStates& slots,
                  const PackedStep& header) {
  const UpdateSlotsArgs args{.packed = packed, .slots = slots};
  if (header.num_slot_params > 0)
    launch(set_slots_kernel,
           shape_for(slots.vocab_size,
                     std::min(static_cast<unsigned>(header.num_slot_params), kMaxBlocksY)),
           stream, args);
  CHECK(header.num_allowed_tokens == 0 || slots.allowed != nullptr);
  if (header.num_slot_history > 0 || header.num_slot_bias > 0 || header.num_allowed_tokens > 0)
    launch(fill_slots_kernel, {.threads = LoadStepConfig::kThreads}, stream, args);
}

void copy_blocks(CudaStream stream, const int32_t* packed, const PackedStep& header, std::byte* kv,
                 int64_t block_bytes) {
  if (header.num_block_copies == 0) return;
  launch(copy_blocks_kernel, shape_for(block_bytes / 2), stream,
         CopyBlocksArgs{.packed = packed, .kv = kv, .block_bytes = block_bytes});
}

void take_expert_counts(CudaStream stream, const ExpertStates& experts, int64_t count,
                        int32_t* to) {
  launch(take_expert_counts_kernel, shape_for(count), stream,
         TakeCountsArgs{.counts = experts.counts, .to = to, .count = count});
}

std::vector<CudaFunction> load_step_functions() {
  return {cuda_function(load_step_kernel), cuda_function(set_slots_kernel),
          cuda_function(fill_slots_kernel), cuda_function(copy_blocks_kernel),
          cuda_function(take_expert_counts_kernel)};
}

}  // namespace nanoweave
