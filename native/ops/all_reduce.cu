// all_reduce: y = Σ over the group of x, [T, C], float32 in rank order, one rounding, none where y
// is f32 (through a switch: its order, rounded to x's type). reduce_scatter: the same for the rows
// the rank owns, kept there.
//
// Rows are taken as 16-byte vectors; rows that are none (mean_squares: two numbers) element by
// element, which no switch does.
//
// Entry barrier: all x are written. One shot: every rank sums everything; two shots: a rank sums
// its share of the vectors and stores it to all. Exit barrier: all y are stored, no x is read any
// more. Bytes per token and rank, C elements each: one shot W read, 1 written; two shots 1 read
// from each of W ranks over the whole group, and as many written.
#include "cuda/comm.cuh"
#include "ops/overlapped.cuh"

namespace nanoweave {

namespace {

struct AllReduceConfig {
  static constexpr int kThreads = 512;
  static constexpr int kInFlight = 2;  // vectors of a thread, each from several ranks
  static_assert(kThreads >= kMaxRanks);
};

// What a thread takes at a time, and how.
enum class Access : int32_t { kVectors, kMulticast, kElements };

// What a rank sums, and where the sums go.
enum class Share : int32_t {
  kAll,       // everything, for itself
  kOwnToAll,  // its share of the vectors or elements, for all
  kOwnRows,   // the rows it owns, for itself
};

struct AllReduceArgs {
  CommArgs comm;
  int64_t x, y;       // heap offsets of row 0, bytes
  int64_t row_bytes;  // of x
  Share share;
};

// Stores the sums of a vector of x at `at` (bytes), here or to all: as Y, one or two vectors.
template <typename T, typename Y, bool kMulticast>
__device__ __forceinline__ void store_sums(const GroupMemory<T, kMulticast>& group, int64_t at,
                                           const float (&total)[kPerVec16<T>], bool to_all) {
  constexpr int kWidth = kPerVec16<Y>;
#pragma unroll
  for (int first = 0; first < kPerVec16<T>; first += kWidth) {
    float part[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) part[k] = total[first + k];
    const Vec16 stored = pack<Y>(part);
    const int64_t to = at + first * static_cast<int64_t>(sizeof(Y));
    if (to_all)
      group.store_all(to, stored);
    else
      group.store_own(to, stored);
  }
}

// Vectors [begin, end) of the op's rows, spread over the blocks of this rank. T: of x, Y: of y.
template <typename T, typename Y, bool kMulticast>
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
      constexpr int64_t kGrowth = sizeof(Y) / sizeof(T);
      const int64_t at = args.y + kGrowth * (origin + (i + j * stride) * 16);
      store_sums<T, Y, kMulticast>(group, at, total[j], to_all);
    }
  }
}

// Elements [begin, end) of the op's rows, spread over the blocks of this rank.
template <typename T, typename Y>
__device__ __forceinline__ void sum_elements(const AllReduceArgs& args, const CommPlace& place,
                                             int64_t begin, int64_t end, bool to_all) {
  const int64_t origin = place.rows.begin * (args.row_bytes / static_cast<int64_t>(sizeof(T)));
  const auto x = [&](int rank) {
    return reinterpret_cast<const T*>(args.comm.view.heaps[rank] + args.x) + origin;
  };
  const auto y = [&](int rank) {
    return reinterpret_cast<Y*>(args.comm.view.heaps[rank] + args.y) + origin;
  };
  const int64_t stride = int64_t{gridDim.x} * AllReduceConfig::kThreads;
  for (int64_t i = begin + blockIdx.x * AllReduceConfig::kThreads + threadIdx.x; i < end;
       i += stride) {
    float total = as_float(x(place.first)[i]);
    for (int p = 1; p < place.count; ++p) total += as_float(x(place.first + p)[i]);
    const Y sum = round_to<Y>(total);
    if (to_all)
      for (int p = 0; p < place.count; ++p) ptx::store_remote_element(y(place.first + p) + i, sum);
    else
      y(place.rank)[i] = sum;
  }
}

template <typename T, typename Y, Access kAccess>
__device__ __forceinline__ void sum_range(const AllReduceArgs& args, const CommPlace& place,
                                          int64_t begin, int64_t end, bool to_all) {
  if constexpr (kAccess == Access::kElements)
    sum_elements<T, Y>(args, place, begin, end, to_all);
  else
    sum_vectors<T, Y, kAccess == Access::kMulticast>(args, place, begin, end, to_all);
}

template <typename T, typename Y, Access kAccess>
__global__ void __launch_bounds__(AllReduceConfig::kThreads)
    all_reduce_kernel(const __grid_constant__ AllReduceArgs args) {
  ptx::wait_for_previous_kernel();
  const CommPlace place = comm_place(args.comm);
  if (place.rows.count == 0) return;  // in all ranks alike
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;

  constexpr int64_t kUnitBytes = kAccess == Access::kElements ? int64_t{sizeof(T)} : 16;
  const int tp = args.comm.tp;
  const int64_t per_row = args.row_bytes / kUnitBytes;
  const int64_t all = place.rows.count * per_row;
  if (args.share == Share::kOwnRows) {
    const RowSpan own = owned_rows(place.rows.count, tp, place.rank - place.first);
    sum_range<T, Y, kAccess>(args, place, own.begin * per_row, own.end * per_row, false);
  } else if (args.share == Share::kOwnToAll) {
    const RowSpan own = owned_rows(all, tp, place.rank - place.first);
    sum_range<T, Y, kAccess>(args, place, own.begin, own.end, true);
  } else {
    sum_range<T, Y, kAccess>(args, place, 0, all, false);
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

struct SumOp {
  CollectiveOp collective;
  NcclSum nccl;
  bool scatter;
};

template <typename T, typename Y>
CudaKernel sum_kernel(const SumOp& op) {
  const auto launch_sum = [op](const CudaLaunch& launch) {
    const LaunchPlan plan = plan_collective(op.collective, launch);
    if (plan.form == CollectiveForm::kNccl) return op.nccl.launch(launch);
    const bool one_shot = plan.form == CollectiveForm::kOneShot;
    const AllReduceArgs args{.comm = comm_args(launch, op.collective.which),
                             .x = heap_offset(launch, launch.operands[0].in[0]),
                             .y = heap_offset(launch, launch.operands[0].out[0]),
                             .row_bytes = op.collective.row_bytes,
                             .share = op.scatter ? Share::kOwnRows
                                      : one_shot ? Share::kAll
                                                 : Share::kOwnToAll};
    nanoweave::launch(!op.collective.whole_vectors ? all_reduce_kernel<T, Y, Access::kElements>
                      : plan.form == CollectiveForm::kMulticast
                          ? all_reduce_kernel<T, Y, Access::kMulticast>
                          : all_reduce_kernel<T, Y, Access::kVectors>,
                      comm_shape(launch, plan, AllReduceConfig::kThreads), launch.stream, args);
  };
  return {.launch = launch_sum,
          .workspace_bytes = nullptr,
          .functions = {cuda_function(all_reduce_kernel<T, Y, Access::kVectors>),
                        cuda_function(all_reduce_kernel<T, Y, Access::kMulticast>),
                        cuda_function(all_reduce_kernel<T, Y, Access::kElements>)},
          .plan = [=](const CudaLaunch& launch) { return plan_collective(op.collective, launch); }};
}

}  // namespace

CudaKernel cuda_sum(const OpInstance& op, const CudaPlan& plan, const BufferDesc& x,
                    const BufferDesc& y, int32_t which, bool scatter) {
  const bool is_rounded = x.dtype == y.dtype;
  op.require(is_rounded || op.collective_form() != CollectiveForm::kNccl,
             "NCCL has no f32 sums of 16-bit rows");
  op.require(plan.peer_access || is_rounded,
             "NCCL, which these GPUs need, has no f32 sums of 16-bit rows");
  const int64_t access_bytes = has_vector_rows(x) ? 16 : dtype_bytes(x.dtype);
  SumOp sum{
      .collective = collective_op(op, plan, x, which, AllReduceConfig::kThreads * access_bytes,
                                  /*needs_counts=*/scatter),
      .nccl = {.which = which, .buffer = y, .scatter = scatter},
      .scatter = scatter};
  sum.collective.may_use_nccl = is_rounded;
  return with_float_type(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return is_rounded ? sum_kernel<T, T>(sum) : sum_kernel<T, float>(sum);
  });
}

CudaKernel prepare_cuda_all_reduce(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  return cuda_sum(op, plan, y, y, which_rows(y, op.op.part()), false);
}

CudaKernel prepare_cuda_reduce_scatter(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  return cuda_sum(op, plan, y, y, which_rows(y, op.op.part()), true);
}

}  // namespace nanoweave
