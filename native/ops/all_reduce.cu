// all_reduce: y = Σ over the group of x, [T, C], float32 in rank order, one rounding (through a
// switch: its order). reduce_scatter: the same for the rows the rank owns, kept there.
//
// Entry barrier: all x are written. One shot: every rank sums everything; two shots: a rank sums
// its share of the vectors and stores it to all. Exit barrier: all y are stored, no x is read any
// more. Bytes per token and rank, C elements each: one shot W read, 1 written; two shots 1 read
// from each of W ranks over the whole group, and as many written.
#include "cuda/comm.cuh"

namespace nanoweave {

namespace {

struct AllReduceConfig {
  static constexpr int kThreads = 512;
  static constexpr int kInFlight = 2;  // vectors of a thread, each from several ranks
  static_assert(kThreads >= kMaxRanks);
};

// What a rank sums, and where the sums go.
enum class Share : int32_t {
  kAll,       // everything, for itself
  kOwnToAll,  // its share of the vectors, for all
  kOwnRows,   // the rows it owns, for itself
};

struct AllReduceArgs {
  CommArgs comm;
  int64_t x, y;       // heap offsets of row 0, bytes
  int64_t row_bytes;  // of x and y
  Share share;
};

// Vectors [begin, end) of the op's rows, spread over the blocks of this rank.
template <typename T, bool kMulticast>
__device__ __forceinline__ void sum_vectors(const AllReduceArgs& args, const CommPlace& place,
                                            int64_t begin, int64_t end, bool to_all) {
  constexpr int kInFlight = AllReduceConfig::kInFlight;
  constexpr int kWidth = kPerVec16<T>;
  const GroupMemory<T, kMulticast> group{args.comm, place};
  const int64_t stride = int64_t{gridDim.x} * AllReduceConfig::kThreads;
  const int64_t origin = place.rows.begin * args.row_bytes;
  for (int64_t i = begin + blockIdx.x * AllReduceConfig::kThreads + threadIdx.x; i < end;
       i += stride * kInFlight) {
    float total[kInFlight][kWidth];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (i + j * stride < end) group.sum(args.x + origin + (i + j * stride) * 16, total[j]);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (i + j * stride >= end) continue;
      const int64_t at = args.y + origin + (i + j * stride) * 16;
      const Vec16 rounded = pack<T>(total[j]);
      if (to_all)
        group.store_all(at, rounded);
      else
        group.store_own(at, rounded);
    }
  }
}

template <typename T, bool kMulticast>
__global__ void __launch_bounds__(AllReduceConfig::kThreads)
    all_reduce_kernel(const __grid_constant__ AllReduceArgs args) {
  ptx::wait_for_previous_kernel();
  const CommPlace place = comm_place(args.comm);
  if (place.rows.count == 0) return;  // in all ranks alike
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;

  const int tp = args.comm.tp;
  const int64_t vectors = place.rows.count * args.row_bytes / 16;
  if (args.share == Share::kOwnRows) {
    const RowSpan own = owned_rows(place.rows.count, tp, place.rank - place.first);
    const int64_t per_row = args.row_bytes / 16;
    sum_vectors<T, kMulticast>(args, place, own.begin * per_row, own.end * per_row, false);
  } else if (args.share == Share::kOwnToAll) {
    const RowSpan own = owned_rows(vectors, tp, place.rank - place.first);
    sum_vectors<T, kMulticast>(args, place, own.begin, own.end, true);
  } else {
    sum_vectors<T, kMulticast>(args, place, 0, vectors, false);
  }
  group_barrier<CommPhase::kExit>(args.comm, place);
}

struct NcclSum {
  int32_t which;
  BufferDesc buffer;  // x and y are alike
  bool scatter;

  void launch(const CudaLaunch& launch) const {
    const NcclRows x = nccl_rows(launch, buffer, [](const CudaOperands& at) { return at.in[0]; });
    const NcclRows y = nccl_rows(launch, buffer, [](const CudaOperands& at) { return at.out[0]; });
    nccl_sum(launch, which, scatter ? NcclSharing().set() : NcclSharing(), x, y);
  }
};

CudaKernel prepare(const OpInstance& op, const CudaPlan& plan, bool scatter) {
  const BufferDesc& y = op.output(0);
  require_vector_rows(op, y);
  op.require(op.op.inputs[0].buffer != op.op.outputs[0].buffer, "x and y must differ");
  const CollectiveOp collective =
      collective_op(op, plan, y, AllReduceConfig::kThreads * 16, /*needs_counts=*/scatter);
  const NcclSum nccl{.which = collective.which, .buffer = y, .scatter = scatter};
  return with_float_type(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return CudaKernel{
        .launch =
            [=](const CudaLaunch& launch) {
              const LaunchPlan plan = plan_collective(collective, launch);
              if (plan.form == CollectiveForm::kNccl) return nccl.launch(launch);
              const bool one_shot = plan.form == CollectiveForm::kOneShot;
              const bool multicast = plan.form == CollectiveForm::kMulticast;
              const AllReduceArgs args{.comm = comm_args(launch, collective.which),
                                       .x = heap_offset(launch, launch.operands[0].in[0]),
                                       .y = heap_offset(launch, launch.operands[0].out[0]),
                                       .row_bytes = collective.row_bytes,
                                       .share = scatter    ? Share::kOwnRows
                                                : one_shot ? Share::kAll
                                                           : Share::kOwnToAll};
              nanoweave::launch(
                  multicast ? all_reduce_kernel<T, true> : all_reduce_kernel<T, false>,
                  comm_shape(launch, plan, AllReduceConfig::kThreads), launch.stream, args);
            },
        .workspace_bytes = nullptr,
        .functions = {cuda_function(all_reduce_kernel<T, false>),
                      cuda_function(all_reduce_kernel<T, true>)},
        .plan = [=](const CudaLaunch& launch) { return plan_collective(collective, launch); }};
  });
}

}  // namespace

CudaKernel prepare_cuda_all_reduce(const OpInstance& op, const CudaPlan& plan) {
  return prepare(op, plan, false);
}

CudaKernel prepare_cuda_reduce_scatter(const OpInstance& op, const CudaPlan& plan) {
  return prepare(op, plan, true);
}

}  // namespace nanoweave
