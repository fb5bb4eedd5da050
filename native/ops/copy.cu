// copy: y = x, [T, C]. For benches and tests; the bandwidth other kernels are compared with. Moves
// 2·C elements per token.
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct CopyConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
  static constexpr int kInFlight = 4;  // loads of a thread before its first store
};

struct CopyArgs {
  RowsRef rows;
  const std::byte* x;  // [T, row_bytes]
  std::byte* y;        // [T, row_bytes]
  int64_t row_bytes;
};

template <typename Unit>
__global__ void __launch_bounds__(CopyConfig::kThreads)
    copy_kernel(const __grid_constant__ CopyArgs args) {
  constexpr int kInFlight = CopyConfig::kInFlight;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int64_t begin = rows.begin * args.row_bytes;
  const int64_t units = rows.count * args.row_bytes / static_cast<int64_t>(sizeof(Unit));
  const auto* x = reinterpret_cast<const Unit*>(args.x + begin);
  auto* y = reinterpret_cast<Unit*>(args.y + begin);
  const int64_t stride = int64_t{gridDim.x} * CopyConfig::kThreads;
  for (int64_t i = blockIdx.x * CopyConfig::kThreads + threadIdx.x; i < units;
       i += stride * kInFlight) {
    Unit held[kInFlight] = {};
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (i + j * stride < units) held[j] = x[i + j * stride];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (i + j * stride < units) y[i + j * stride] = held[j];
  }
}

}  // namespace

CudaKernel prepare_cuda_copy(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& y = op.output(0);
  const int32_t which = which_rows(y, op.op.part());
  const int64_t row_bytes = y.cols() * dtype_bytes(y.dtype);
  const auto shape = [=](const CudaLaunch& launch) {
    constexpr int64_t kBlockBytes = CopyConfig::kThreads * 16 * CopyConfig::kInFlight;
    const int64_t bytes = most_rows(launch.bucket, which) * row_bytes;
    const int64_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes;
    return row_shape(launch, blocks_for(launch, blocks, CopyConfig::kBlocksPerSm),
                     CopyConfig::kThreads);
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    return CopyArgs{
        .rows = {rank.step.counts, which}, .x = at.in[0], .y = at.out[0], .row_bytes = row_bytes};
  };
  return row_bytes % 16 == 0 ? per_rank(copy_kernel<Vec16>, shape, arguments)
                             : per_rank(copy_kernel<uint16_t>, shape, arguments);
}

}  // namespace nanoweave
