// Matmul in float32 multiply-adds (matmul_simt.cuh) for every pair of dtypes and every K: the
// float32 path (no TF32), and shapes the tensor-core kernels do not take. Floor: 2·T·N·K flops
// outside of tensor cores. Stays in the rank.
#include "ops/matmul_simt.cuh"

namespace nanoweave {

namespace {

__global__ void __launch_bounds__(SimtConfig::kThreads)
    matmul_simt_kernel(const __grid_constant__ MatmulArgs args) {
  constexpr int kTile = SimtConfig::kTile;
  auto& shared = shared_memory<SimtShared>();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int first_column = static_cast<int>(blockIdx.x) * kTile;
  const int step = static_cast<int>(gridDim.y) * kTile;
  for (int row = static_cast<int>(blockIdx.y) * kTile; row < rows.count; row += step)
    simt_tile(args, shared, rows, row, first_column);
}

}  // namespace

CudaKernel matmul_simt(const MatmulShape& shape) {
  return per_rank(
      matmul_simt_kernel,
      [=](const CudaLaunch& launch) {
        constexpr int kTile = SimtConfig::kTile;
        const int64_t rows = most_rows(launch.bucket, shape.which);
        LaunchShape grid =
            row_shape(launch, static_cast<unsigned>((shape.constant.n + kTile - 1) / kTile),
                      SimtConfig::kThreads, sizeof(SimtShared));
        grid.blocks_y =
            static_cast<unsigned>(std::clamp<int64_t>((rows + kTile - 1) / kTile, 1, kMaxBlocksY));
        return grid;
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        return matmul_args(shape, rank, at);
      },
      sizeof(SimtShared));
}

}  // namespace nanoweave
