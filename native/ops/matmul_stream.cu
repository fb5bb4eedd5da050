// Matmul of few rows: the weights are read once (matmul_stream.cuh), and that is all the time it
// takes. They do not depend on earlier kernels, so the first loads are issued before the wait for
// them. Floor: N·K weights. Stays in the rank.
#include "ops/matmul_stream.cuh"

namespace nanoweave {

namespace {

template <typename T, int kRowTiles, int kXTiles>
__global__ void __launch_bounds__(StreamConfig::kThreads)
    matmul_stream_kernel(const __grid_constant__ MatmulArgs args) {
  using Block = StreamBlock<T, kRowTiles, kXTiles>;
  auto& shared = shared_memory<typename Block::Shared>();
  Block block(args, static_cast<int>(blockIdx.x) * Block::kWeightRows);
  block.load_weights(warp_index());
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  for (int first = 0; first < rows.count; first += Block::kXRows) {
    if (first > 0) block.load_weights(warp_index());
    block.run(rows, first, shared);
  }
}

template <typename T, int kRowTiles, int kXTiles>
void launch_stream(const MatmulShape& shape, const CudaLaunch& launch) {
  using Block = StreamBlock<T, kRowTiles, kXTiles>;
  const auto blocks =
      static_cast<unsigned>((shape.constant.n + Block::kWeightRows - 1) / Block::kWeightRows);
  for (size_t i = 0; i < launch.ranks.size(); ++i)
    nanoweave::launch(
        matmul_stream_kernel<T, kRowTiles, kXTiles>,
        row_shape(launch, blocks, StreamConfig::kThreads, sizeof(typename Block::Shared)),
        launch.stream, matmul_args(shape, launch.ranks[i], launch.operands[i]));
}

template <typename T, int kXTiles>
void launch_rows(const MatmulShape& shape, const CudaLaunch& launch) {
  // 32 rows of W per block halve the loads of x; 16 where that leaves multiprocessors idle, or the
  // registers do not hold the sums of all x.
  if constexpr (kXTiles <= 2)
    if (shape.constant.n / 32 >= launch.sm_budget)
      return launch_stream<T, 2, kXTiles>(shape, launch);
  launch_stream<T, 1, kXTiles>(shape, launch);
}

template <typename T, int kRowTiles, int kXTiles>
CudaFunction stream_function() {
  return cuda_function(matmul_stream_kernel<T, kRowTiles, kXTiles>,
                       sizeof(typename StreamBlock<T, kRowTiles, kXTiles>::Shared));
}

template <typename T>
CudaKernel make_stream(const MatmulShape& shape) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                const int64_t rows = most_rows(launch.bucket, shape.which);
                if (rows <= 8)
                  launch_rows<T, 1>(shape, launch);
                else if (rows <= 16)
                  launch_rows<T, 2>(shape, launch);
                else
                  launch_rows<T, 4>(shape, launch);
              },
          .workspace_bytes = nullptr,
          .functions = {stream_function<T, 1, 1>(), stream_function<T, 1, 2>(),
                        stream_function<T, 1, 4>(), stream_function<T, 2, 1>(),
                        stream_function<T, 2, 2>()}};
}

}  // namespace

CudaKernel matmul_stream(const MatmulShape& shape) {
  if (shape.constant.x_dtype == DType::kBf16) return make_stream<bf16>(shape);
  return make_stream<f16>(shape);
}

}  // namespace nanoweave
