// all_reduce_rms_norm: residual' = residual + (post_weight ? rms(s)·post_weight : s) with
// s = Σ over the group of partial; y = rms(residual')·weight. [T, H]; s is neither rounded nor
// stored. The order reduce-scatter → + residual → RMSNorm → all-gather in one kernel is
// TokenWeave's.
//
// One block per row. One shot: every rank does every row, residuals stay replicated. Two shots (8
// rows per rank and more): a rank does the rows it owns, keeps only their residual current, and
// stores y to all. Both give a row the same bits. Entry barrier: all partials are written. Exit
// barrier: all y are stored, no partial is read any more.
// Bytes per token in two shots, H elements each: W partials read, the residual read and written, W
// y written, once in the whole group.
#include "cuda/comm.cuh"
#include "cuda/norm_row.cuh"
#include "ops/add_rms_norm.cuh"

namespace nanoweave {

namespace {

struct FusedNormConfig {
  static constexpr int kThreads = 512;
  static_assert(kThreads >= kMaxRanks);
};

struct FusedNormArgs {
  CommArgs comm;
  int64_t partial, residual, y;         // heap offsets of row 0, bytes
  const float* weight[kMaxRanks];       // by local rank, [hidden]
  const float* post_weight[kMaxRanks];  // or null
  int32_t hidden;
  int64_t sharded_from;  // rows of a step
  float eps;
};

// Row `row` of the whole buffers: its sum, its residual, its norm to this rank or to all.
template <typename T, bool kMulticast>
__device__ __forceinline__ void fused_row(const FusedNormArgs& args, const CommPlace& place,
                                          NormShared& shared, int turn, int64_t row, bool to_all) {
  constexpr int kThreads = FusedNormConfig::kThreads;
  constexpr int kWidth = kPerVec16<T>;
  const GroupMemory<T, kMulticast> group{args.comm, place};
  const int64_t offset = row * args.hidden * static_cast<int64_t>(sizeof(T));
  float sum = 0;
  for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
    float values[kWidth];
    group.sum(args.partial + offset + i * static_cast<int64_t>(sizeof(T)), values);
    sum += squares(values);
    put_floats(shared.row + i, values);
  });
  auto* residual = reinterpret_cast<T*>(args.comm.view.heaps[place.rank] + args.residual + offset);
  const float scale = add_residual<T, kThreads, kWidth>(
      shared, turn, sum, residual, args.post_weight[blockIdx.y], args.hidden, args.eps);
  for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
    float values[kWidth];
    scale_by_weight(shared.row + i, args.weight[blockIdx.y] + i, scale, values);
    const int64_t at = args.y + offset + i * static_cast<int64_t>(sizeof(T));
    if (to_all)
      group.store_all(at, pack<T>(values));
    else
      group.store_own(at, pack<T>(values));
  });
}

template <typename T, bool kMulticast>
__global__ void __launch_bounds__(FusedNormConfig::kThreads)
    all_reduce_rms_norm_kernel(const __grid_constant__ FusedNormArgs args) {
  auto& shared = shared_memory<NormShared>(norm_shared_bytes(args.hidden));
  ptx::wait_for_previous_kernel();
  const CommPlace place = comm_place(args.comm);
  const RowRange rows = place.rows;
  if (rows.count == 0) return;  // in all ranks alike
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;

  const int tp = args.comm.tp;
  const bool two_shot = rows.count >= args.sharded_from;
  const RowSpan own =
      two_shot ? owned_rows(rows.count, tp, place.rank - place.first) : RowSpan{0, rows.count};
  int turn = 0;
  for (int64_t r = own.begin + blockIdx.x; r < own.end; r += gridDim.x, turn ^= 1)
    fused_row<T, kMulticast>(args, place, shared, turn, rows.begin + r, two_shot);
  group_barrier<CommPhase::kExit>(args.comm, place);
}

// By NCCL: the sums go to y, rounded, then the norm works in place. Where the host knows a step's
// rows and there are enough of them, a rank gets and normalises those it owns; else every rank does
// all rows of the bucket.
void launch_nccl(const CudaLaunch& launch, const LaunchPlan& plan, const BufferDesc& buffer,
                 int32_t which, float eps) {
  const NcclRows partial =
      nccl_rows(launch, buffer, [](const CudaOperands& at) { return at.in[0]; });
  const NcclRows y = nccl_rows(launch, buffer, [](const CudaOperands& at) { return at.out[0]; });
  NcclSharing shared;
  for (size_t i = 0; i < launch.counts.size(); ++i)
    shared[i] = host_rows(launch, i, which).count >= plan.sharded_from;
  nccl_sum(launch, which, shared, partial, y);
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    const CudaOperands& at = launch.operands[i];
    launch_add_rms_norm(launch, launch.ranks[i],
                        {.x = y.data[i],
                         .residual = at.out[1],
                         .weight = reinterpret_cast<const float*>(at.in[2]),
                         .post_weight = reinterpret_cast<const float*>(at.in[3]),
                         .y = y.data[i],
                         .dtype = buffer.dtype,
                         .x_dtype = buffer.dtype,
                         .hidden = static_cast<int32_t>(buffer.cols()),
                         .eps = eps,
                         .which = which,
                         .owned_groups = shared[i] ? 1 : 0});
  }
  nccl_gather_rows(launch, which, shared, y);
}

}  // namespace

CudaKernel prepare_cuda_all_reduce_rms_norm(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  require_vector_rows(op, y);
  op.require(y.cols() <= kMaxNormCols, "rows of more than %lld columns on CUDA",
             static_cast<long long>(kMaxNormCols));
  op.require(op.op.inputs[0].buffer != op.op.outputs[0].buffer, "partial and y must differ");
  const CollectiveOp collective =
      collective_op(op, plan, y, which_rows(y, op.op.part()),
                    y.cols() * dtype_bytes(y.dtype));  // a row per block
  const auto hidden = static_cast<int32_t>(y.cols());
  const auto eps = static_cast<float>(op.number("eps"));
  const int64_t shared_bytes = norm_shared_bytes(hidden);
  std::vector<CudaFunction> functions =
      add_rms_norm_functions(y.dtype, y.dtype, hidden);  // after NCCL

  return with_float_type(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    functions.push_back(cuda_function(all_reduce_rms_norm_kernel<T, false>, shared_bytes));
    functions.push_back(cuda_function(all_reduce_rms_norm_kernel<T, true>, shared_bytes));
    return CudaKernel{
        .launch =
            [=, y = y](const CudaLaunch& launch) {
              const LaunchPlan plan = plan_collective(collective, launch);
              if (plan.form == CollectiveForm::kNccl)
                return launch_nccl(launch, plan, y, collective.which, eps);
              const bool multicast = plan.form == CollectiveForm::kMulticast;
              FusedNormArgs args{.comm = comm_args(launch, collective.which),
                                 .partial = heap_offset(launch, launch.operands[0].in[0]),
                                 .residual = heap_offset(launch, launch.operands[0].out[1]),
                                 .y = heap_offset(launch, launch.operands[0].out[0]),
                                 .weight = {},
                                 .post_weight = {},
                                 .hidden = hidden,
                                 .sharded_from = plan.sharded_from,
                                 .eps = eps};
              for (size_t i = 0; i < launch.ranks.size(); ++i) {
                args.weight[i] = reinterpret_cast<const float*>(launch.operands[i].in[2]);
                args.post_weight[i] = reinterpret_cast<const float*>(launch.operands[i].in[3]);
              }
              nanoweave::launch(multicast ? all_reduce_rms_norm_kernel<T, true>
                                          : all_reduce_rms_norm_kernel<T, false>,
                                comm_shape(launch, plan, FusedNormConfig::kThreads,
                                           static_cast<size_t>(shared_bytes)),
                                launch.stream, args);
            },
        .workspace_bytes = nullptr,
        .functions = functions,
        .plan = [=](const CudaLaunch& launch) { return plan_collective(collective, launch); }};
  });
}

}  // namespace nanoweave
