// all_gather_rows: x [T, C] in place: the rows a rank owns of every row group go to all. Entry
// barrier: nobody reads what was there; exit barrier: all rows have arrived. Bytes per token of a
// rank: C elements read, stored to W ranks.
#include "cuda/comm.cuh"
#include "ops/overlapped.cuh"

namespace nanoweave {

namespace {

struct GatherRowsConfig {
  static constexpr int kThreads = 512;
  static_assert(kThreads >= kMaxRanks);
};

struct GatherRowsArgs {
  CommArgs comm;
  int64_t x;  // heap offset of row 0, bytes
  int64_t row_bytes;
  int32_t groups;
};

template <bool kMulticast>
__global__ void __launch_bounds__(GatherRowsConfig::kThreads)
    gather_rows_kernel(const __grid_constant__ GatherRowsArgs args) {
  ptx::wait_for_previous_kernel();
  const CommPlace place = comm_place(args.comm);
  if (place.rows.count == 0) return;  // in all ranks alike
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;

  const GroupMemory<float, kMulticast> memory{args.comm, place};  // moves bytes
  const int64_t stride = int64_t{gridDim.x} * GatherRowsConfig::kThreads;
  const std::byte* own_heap = args.comm.view.heaps[place.rank];
  for (int group = 0; group < args.groups; ++group) {
    const RowSpan own = owned_group_rows(place.rows.count, args.groups, group, args.comm.tp,
                                         place.rank - place.first);
    const int64_t begin = args.x + (place.rows.begin + own.begin) * args.row_bytes;
    const int64_t vectors = (own.end - own.begin) * args.row_bytes / 16;
    for (int64_t i = blockIdx.x * GatherRowsConfig::kThreads + threadIdx.x; i < vectors;
         i += stride) {
      const int64_t at = begin + i * 16;
      memory.store_all(at, *reinterpret_cast<const Vec16*>(own_heap + at));
    }
  }
  group_barrier<CommPhase::kExit>(args.comm, place);
}

// NCCL's calls have owners of one group of rows.
void launch_nccl(const CudaLaunch& launch, const BufferDesc& x, int32_t which, int groups) {
  const NcclRows rows = nccl_rows(launch, x, [](const CudaOperands& at) { return at.out[0]; });
  for (int group = 0; group < groups; ++group) {
    const int32_t one = num_groups(which) > 0 ? which : group_of_rows(which, groups, group);
    nccl_gather_rows(launch, one, NcclSharing().set(), rows);
  }
}

}  // namespace

CudaKernel cuda_gather_rows(const OpInstance& op, const CudaPlan& plan, const BufferDesc& x,
                            int32_t which, int groups) {
  require_vector_rows(op, x);
  const CollectiveOp collective =
      collective_op(op, plan, x, which, GatherRowsConfig::kThreads * 16, /*needs_counts=*/true);
  const int64_t row_bytes = collective.row_bytes;
  return {.launch =
              [=, x = x](const CudaLaunch& launch) {
                const LaunchPlan plan = plan_collective(collective, launch);
                if (plan.form == CollectiveForm::kNccl)
                  return launch_nccl(launch, x, which, groups);
                const GatherRowsArgs args{.comm = comm_args(launch, which),
                                          .x = heap_offset(launch, launch.operands[0].out[0]),
                                          .row_bytes = row_bytes,
                                          .groups = groups};
                const bool multicast = plan.form == CollectiveForm::kMulticast;
                nanoweave::launch(multicast ? gather_rows_kernel<true> : gather_rows_kernel<false>,
                                  comm_shape(launch, plan, GatherRowsConfig::kThreads),
                                  launch.stream, args);
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(gather_rows_kernel<false>),
                        cuda_function(gather_rows_kernel<true>)},
          .plan = [=](const CudaLaunch& launch) { return plan_collective(collective, launch); }};
}

CudaKernel prepare_cuda_all_gather_rows(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& x = op.output(0);
  return cuda_gather_rows(op, plan, x, which_rows(x, op.op.part()),
                          static_cast<int>(op.integer("groups")));
}

}  // namespace nanoweave
