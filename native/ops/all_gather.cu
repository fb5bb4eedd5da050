// all_gather: y [rows, C·W] holds the columns x [rows, C] of every rank side by side, in rank
// order. A rank stores its x to all. Entry barrier: all y may be written; exit barrier: all are.
// Bytes per row and rank: C elements read, W·C written.
#include "cuda/comm.cuh"

namespace nanoweave {

namespace {

struct AllGatherConfig {
  static constexpr int kThreads = 512;
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

}  // namespace

CudaKernel prepare_cuda_all_gather(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& x = *op.input(0);
  require_vector_rows(op, x);
  const int32_t which = which_rows(x, op.op.part());
  const int64_t row_bytes = x.cols() * dtype_bytes(x.dtype);
  return {.launch =
              [=](const CudaLaunch& launch) {
                const bool multicast = uses_multicast(launch, false);  // sums nothing
                const AllGatherArgs args{.comm = comm_args(launch, which),
                                         .x = heap_offset(launch, launch.operands[0].in[0]),
                                         .y = heap_offset(launch, launch.operands[0].out[0]),
                                         .row_bytes = row_bytes};
                const int64_t vectors = most_rows(launch.bucket, which) * row_bytes / 16;
                const int64_t work =
                    (vectors + AllGatherConfig::kThreads - 1) / AllGatherConfig::kThreads;
                nanoweave::launch(multicast ? all_gather_kernel<true> : all_gather_kernel<false>,
                                  comm_shape(launch, work, AllGatherConfig::kThreads, multicast),
                                  launch.stream, args);
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(all_gather_kernel<false>),
                        cuda_function(all_gather_kernel<true>)}};
}

}  // namespace nanoweave
