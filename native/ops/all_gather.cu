// all_gather: y [rows, C·W] holds the columns x [rows, C] of every rank side by side, in rank
// order. A rank stores its x to all. Entry barrier: all y may be written; exit barrier: all are.
// Bytes per row and rank: C elements read, W·C written.
#include "cuda/comm.cuh"

namespace nanoweave {

namespace {

struct AllGatherConfig {
  static constexpr int kThreads = 512;
  static constexpr int kBlocksPerSm = 2;
  static_assert(kThreads >= kMaxRanks);
};

struct AllGatherArgs {
  CommArgs comm;
  int64_t x, y;       // heap offsets of row 0, bytes
  int64_t row_bytes;  // of x
};

template <bool kMulticast>
__global__ void __launch_bounds__(AllGatherConfig::kThreads)
    all_gather_kernel(const __grid_constant__ AllGatherArgs args) {
  ptx::wait_for_previous_kernel();
  const CommPlace place = comm_place(args.comm);
  if (place.rows.count == 0) return;  // in all ranks alike
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;

  const GroupMemory<float, kMulticast> group{args.comm, place};  // moves bytes
  const int64_t per_row = args.row_bytes / 16;
  const int64_t vectors = place.rows.count * per_row;
  const int64_t stride = int64_t{gridDim.x} * AllGatherConfig::kThreads;
  const std::byte* x = args.comm.view.heaps[place.rank] + args.x;
  for (int64_t i = blockIdx.x * AllGatherConfig::kThreads + threadIdx.x; i < vectors; i += stride) {
    const int64_t row = place.rows.begin + i / per_row;
    const int64_t in_row = i % per_row * 16;
    const Vec16 value = *reinterpret_cast<const Vec16*>(x + row * args.row_bytes + in_row);
    const int64_t column = (place.rank - place.first) * args.row_bytes + in_row;
    group.store_all(args.y + row * args.row_bytes * args.comm.tp + column, value);
  }
  group_barrier<CommPhase::kExit>(args.comm, place);
}

// After NCCL: x of all ranks lie one after the other, [tp, rows, C].
struct InterleaveArgs {
  const std::byte* gathered;
  std::byte* y;  // the op's first row, [rows, C·tp]
  int64_t rows;
  int64_t row_bytes;  // of x
  int32_t tp;
};

__global__ void __launch_bounds__(AllGatherConfig::kThreads)
    interleave_kernel(const __grid_constant__ InterleaveArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int64_t per_row = args.row_bytes / 16;
  const int64_t vectors = args.tp * args.rows * per_row;
  const int64_t stride = int64_t{gridDim.x} * AllGatherConfig::kThreads;
  for (int64_t i = blockIdx.x * AllGatherConfig::kThreads + threadIdx.x; i < vectors; i += stride) {
    const int64_t source = i / per_row;  // rank · rows + row
    const int64_t to = (source % args.rows * args.tp + source / args.rows) * per_row + i % per_row;
    reinterpret_cast<Vec16*>(args.y)[to] = reinterpret_cast<const Vec16*>(args.gathered)[i];
  }
}

// Bytes that NCCL gathers on one rank, in the lane's workspace behind its counters.
int64_t gathered_bytes(const CollectiveOp& op, int tp, const CudaBucket& bucket) {
  return most_rows(bucket, op.which) * op.row_bytes * tp;
}

void launch_nccl(const CudaLaunch& launch, const CollectiveOp& op, const BufferDesc& x) {
  const int tp = launch.ranks[0].tp;
  const int64_t bytes = gathered_bytes(op, tp, launch.bucket);
  std::array<std::byte*, kMaxRanks> gathered{};
  for (size_t i = 0; i < launch.ranks.size(); ++i)
    gathered[i] = launch.workspace + kWorkspaceCounterBytes + static_cast<int64_t>(i) * bytes;
  nccl_all_gather(launch, op.which,
                  nccl_rows(launch, x, [](const CudaOperands& at) { return at.in[0]; }), gathered);
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    const HostRows rows = host_rows(launch, i, op.which);
    if (rows.count == 0) continue;
    const int64_t blocks = (rows.count * op.row_bytes * tp + op.block_bytes - 1) / op.block_bytes;
    nanoweave::launch(
        interleave_kernel,
        row_shape(launch, blocks_for(launch, blocks, AllGatherConfig::kBlocksPerSm),
                  AllGatherConfig::kThreads),
        launch.stream,
        InterleaveArgs{.gathered = gathered[i],
                       .y = launch.operands[i].out[0] + rows.begin * op.row_bytes * tp,
                       .rows = rows.count,
                       .row_bytes = op.row_bytes,
                       .tp = tp});
  }
}

}  // namespace

CudaKernel prepare_cuda_all_gather(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& x = *op.input(0);
  require_vector_rows(op, x);
  CollectiveOp collective =
      collective_op(op, plan, x, which_rows(x, op.op.part()), AllGatherConfig::kThreads * 16);
  // It gathers into a workspace first, which only pays where there is no other way.
  const bool may_use_nccl = collective.form == CollectiveForm::kNccl || !plan.peer_access;
  collective.may_use_nccl = may_use_nccl;
  const int local_ranks = std::min(plan.max_local_ranks, op.program.world);
  std::function workspace = [=, tp = op.program.tp](const CudaDevice&, const CudaBucket& bucket) {
    return kWorkspaceCounterBytes + local_ranks * gathered_bytes(collective, tp, bucket);
  };
  return {.launch =
              [=, x = x](const CudaLaunch& launch) {
                const LaunchPlan plan = plan_collective(collective, launch);
                if (plan.form == CollectiveForm::kNccl) return launch_nccl(launch, collective, x);
                const AllGatherArgs args{.comm = comm_args(launch, collective.which),
                                         .x = heap_offset(launch, launch.operands[0].in[0]),
                                         .y = heap_offset(launch, launch.operands[0].out[0]),
                                         .row_bytes = collective.row_bytes};
                const bool multicast = plan.form == CollectiveForm::kMulticast;
                nanoweave::launch(multicast ? all_gather_kernel<true> : all_gather_kernel<false>,
                                  comm_shape(launch, plan, AllGatherConfig::kThreads),
                                  launch.stream, args);
              },
          .workspace_bytes = may_use_nccl ? std::move(workspace) : nullptr,
          .functions = {cuda_function(all_gather_kernel<false>),
                        cuda_function(all_gather_kernel<true>), cuda_function(interleave_kernel)},
          .plan = [=](const CudaLaunch& launch) { return plan_collective(collective, launch); }};
}

}  // namespace nanoweave
