// gather_rows: y[r] = x[rows[r].token_row], x [T, H] whole, y [R, H]. Stays in the rank. Rows are
// copied as bytes, 2·H elements per row.
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct GatherRowsConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct GatherRowsArgs {
  RowsRef rows;
  const StepRow* step_rows;  // [R]
  const std::byte* x;        // [T, row_bytes]
  std::byte* y;              // [R, row_bytes]
  int32_t row_bytes;
};

template <typename Unit>
__global__ void __launch_bounds__(GatherRowsConfig::kThreads)
    gather_rows_kernel(const __grid_constant__ GatherRowsArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int units = args.row_bytes / static_cast<int>(sizeof(Unit));
  for (int32_t r = blockIdx.x; r < rows.count; r += gridDim.x) {
    const int64_t from_row = args.step_rows[r].token_row;
    const auto* from = reinterpret_cast<const Unit*>(args.x + from_row * args.row_bytes);
    auto* to = reinterpret_cast<Unit*>(args.y + int64_t{r} * args.row_bytes);
    for (int i = threadIdx.x; i < units; i += GatherRowsConfig::kThreads) to[i] = from[i];
  }
}

}  // namespace

CudaKernel prepare_cuda_gather_rows(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& y = op.output(0);
  const auto row_bytes = static_cast<int32_t>(y.cols() * dtype_bytes(y.dtype));
  const auto shape = [](const CudaLaunch& launch) {
    return row_shape(launch, blocks_for(launch, launch.bucket.rows, GatherRowsConfig::kBlocksPerSm),
                     GatherRowsConfig::kThreads);
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    return GatherRowsArgs{.rows = {rank.step.counts, kLogitsRows},
                          .step_rows = rank.step.rows,
                          .x = at.in[0],
                          .y = at.out[0],
                          .row_bytes = row_bytes};
  };
  return row_bytes % 16 == 0 ? per_rank(gather_rows_kernel<Vec16>, shape, arguments)
                             : per_rank(gather_rows_kernel<uint16_t>, shape, arguments);
}

}  // namespace nanoweave
