// Matmul on tensor cores: a block computes one tile of y (matmul_tile.cuh). Floor: 2·T·N·K flops; x
// and W once each while a wave of blocks shares them in L2. Stays in the rank.
#include "ops/matmul_tile.cuh"

namespace nanoweave {

namespace {

struct TileArgs {
  MatmulArgs matmul;
  int32_t row_tiles, column_tiles;  // of the grid
};

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    matmul_tile_kernel(const __grid_constant__ TileArgs args) {
  T* shared = reinterpret_cast<T*>(shared_memory<TileShared>(Config::kSharedBytes).bytes);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.matmul.rows);
  const TilePlace place = place_tile(blockIdx.x, args.row_tiles, args.column_tiles);
  if (place.row * Config::kRows >= rows.count) return;
  TileBlock<T, Config>(args.matmul, shared, rows, place.row * Config::kRows,
                       place.column * Config::kColumns)
      .run();
}

template <typename T, typename Config>
void launch_tile(const MatmulShape& shape, const CudaLaunch& launch) {
  const int64_t rows = most_rows(launch.bucket, shape.which);
  const auto row_tiles = static_cast<int32_t>((rows + Config::kRows - 1) / Config::kRows);
  const int32_t column_tiles = (shape.constant.n + Config::kColumns - 1) / Config::kColumns;
  const auto blocks = static_cast<unsigned>(std::max(1, row_tiles) * column_tiles);
  for (size_t i = 0; i < launch.ranks.size(); ++i)
    nanoweave::launch(matmul_tile_kernel<T, Config>,
                      row_shape(launch, blocks, Config::kThreads, Config::kSharedBytes),
                      launch.stream,
                      TileArgs{.matmul = matmul_args(shape, launch.ranks[i], launch.operands[i]),
                               .row_tiles = std::max(1, row_tiles),
                               .column_tiles = column_tiles});
}

template <typename T>
CudaKernel make_tile(const MatmulShape& shape) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                const int64_t rows = most_rows(launch.bucket, shape.which);
                // Large tiles once they fill the device; a column of them otherwise leaves
                // multiprocessors idle.
                const int64_t large =
                    (rows + LargeTile::kRows - 1) / LargeTile::kRows *
                    ((shape.constant.n + LargeTile::kColumns - 1) / LargeTile::kColumns);
                if (rows <= SmallTile::kRows)
                  launch_tile<T, SmallTile>(shape, launch);
                else if (large >= launch.sm_budget)
                  launch_tile<T, LargeTile>(shape, launch);
                else
                  launch_tile<T, MediumTile>(shape, launch);
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(matmul_tile_kernel<T, LargeTile>, LargeTile::kSharedBytes),
                        cuda_function(matmul_tile_kernel<T, MediumTile>, MediumTile::kSharedBytes),
                        cuda_function(matmul_tile_kernel<T, SmallTile>, SmallTile::kSharedBytes)}};
}

}  // namespace

CudaKernel matmul_tile(const MatmulShape& shape) {
  if (shape.constant.x_dtype == DType::kBf16) return make_tile<bf16>(shape);
  return make_tile<f16>(shape);
}

}  // namespace nanoweave
