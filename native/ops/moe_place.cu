// moe_place: ids [T, k] → slots [T, k], those that serve the chosen experts by the expert table of
// the layer; the contract is the host op's. A thread takes a choice. The first rank of a group also
// keeps the choices for the step's result and counts them: a block in shared memory, then all
// blocks in the rank's counts. Stays in the rank. Bytes per token: 4·k read and written, by the
// first rank written twice.
#include "cuda/expert_states.h"
#include "cuda/rows.cuh"
#include "ops/experts.h"

namespace nanoweave {

namespace {

struct MoePlaceConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 4;
};

struct MoePlaceArgs {
  RowsRef rows;
  const int32_t* ids;    // [T, choices]
  int32_t* slots;        // [T, choices]
  const int32_t* table;  // [experts, kExpertWays]
  ExpertCount* counts;   // [experts]; null: not the first rank of its group
  int32_t* chosen;       // [T, choices]; null likewise
  int32_t experts, choices, group;
};

__global__ void __launch_bounds__(MoePlaceConfig::kThreads)
    place_choices_kernel(const __grid_constant__ MoePlaceArgs args) {
  constexpr int kThreads = MoePlaceConfig::kThreads;
  int32_t* tally = &shared_memory<int32_t>(sizeof(int32_t) * static_cast<size_t>(args.experts));
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const bool counts = args.counts != nullptr;
  if (counts)
    for (int32_t expert = thread; expert < args.experts; expert += kThreads) tally[expert] = 0;
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int64_t end = int64_t{rows.begin + rows.count} * args.choices;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{rows.begin} * args.choices + int64_t{blockIdx.x} * kThreads + thread;
       i < end; i += stride) {
    const int32_t expert = args.ids[i];
    const bool is_expert = expert >= 0 && expert < args.experts;
    // Groups with few tokens begin at different replicas.
    const auto way = static_cast<int32_t>((i / args.choices + args.group) % kExpertWays);
    args.slots[i] = is_expert ? args.table[expert * kExpertWays + way] : -1;
    if (!counts) continue;
    args.chosen[i] = expert;
    if (is_expert) atomicAdd(&tally[expert], 1);
  }
  if (!counts) return;
  __syncthreads();
  for (int32_t expert = thread; expert < args.experts; expert += kThreads)
    if (tally[expert] > 0) atomicAdd(&args.counts[expert], static_cast<ExpertCount>(tally[expert]));
}

}  // namespace

CudaKernel prepare_cuda_moe_place(const OpInstance& op, const CudaPlan&) {
  const ExpertLimits& limits = op.program.limits.experts;
  const int64_t table = op.integer("table");
  const auto experts = static_cast<int32_t>(limits.count);
  const auto choices = static_cast<int32_t>(limits.choices);
  const int32_t which = which_rows(op.output(0), op.op.part());
  const auto shared_bytes = static_cast<int64_t>(sizeof(int32_t)) * experts;
  return per_rank(
      place_choices_kernel,
      [=](const CudaLaunch& launch) {
        const int64_t items = most_rows(launch.bucket, which) * choices;
        const int64_t blocks = (items + MoePlaceConfig::kThreads - 1) / MoePlaceConfig::kThreads;
        return row_shape(launch, blocks_for(launch, blocks, MoePlaceConfig::kBlocksPerSm),
                         MoePlaceConfig::kThreads, static_cast<size_t>(shared_bytes));
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        const ExpertStates& states = rank.experts;
        const bool counts = states.counts != nullptr;
        return MoePlaceArgs{
            .rows = {rank.step.counts, which},
            .ids = reinterpret_cast<const int32_t*>(at.in[0]),
            .slots = reinterpret_cast<int32_t*>(at.out[0]),
            .table = states.tables + table * experts * kExpertWays,
            .counts = counts ? states.counts + table * experts : nullptr,
            .chosen = counts ? states.chosen + table * states.max_tokens * choices : nullptr,
            .experts = experts,
            .choices = choices,
            .group = rank.rank / rank.tp};
      },
      shared_bytes);
}

}  // namespace nanoweave
