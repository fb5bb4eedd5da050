// head_matmul: y_h = x_h·W_hᵀ for every head h, x [T, heads·S], y [T, heads·N]. The heads' weights
// [N, K] lie below each other, each in the room of N rounded up; K ≤ S. A head is a matmul on
// columns of wider rows: grid.y counts heads, grid.x the tiles of one. 16-bit x and W of one type,
// with rows of whole 16-byte vectors, take the tensor-core tiles of matmul, everything else
// float32 multiply-adds; either way a row's bits do not depend on the number of rows.
// Floor: 2·T·heads·N·K flops; the weights once per row tile. Stays in the rank.
#include "ops/matmul_simt.cuh"
#include "ops/matmul_tile.cuh"

namespace nanoweave {

namespace {

struct HeadMatmulArgs {
  MatmulArgs matmul;  // of head 0; n, k and the pitches are a head's
  int32_t x_columns;  // of x, from one head to the next
  int32_t padded;     // rows of W, from one head to the next
  int32_t row_tiles, column_tiles;
};

__device__ __forceinline__ MatmulArgs matmul_of(const HeadMatmulArgs& args, int64_t head) {
  MatmulArgs one = args.matmul;
  one.x += head * args.x_columns * dtype_bytes(one.x_dtype);
  one.w += head * args.padded * one.k * dtype_bytes(one.w_dtype);
  one.y += head * one.n * dtype_bytes(one.y_dtype);
  return one;
}

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    head_tile_kernel(const __grid_constant__ HeadMatmulArgs args) {
  T* shared = reinterpret_cast<T*>(shared_memory<TileShared>(Config::kSharedBytes).bytes);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.matmul.rows);
  const TilePlace place = place_tile(blockIdx.x, args.row_tiles, args.column_tiles);
  if (place.row * Config::kRows >= rows.count) return;
  const MatmulArgs matmul = matmul_of(args, blockIdx.y);
  TileBlock<T, Config>(matmul, shared, rows, place.row * Config::kRows,
                       place.column * Config::kColumns)
      .run();
}

__global__ void __launch_bounds__(SimtConfig::kThreads)
    head_simt_kernel(const __grid_constant__ HeadMatmulArgs args) {
  constexpr int kTile = SimtConfig::kTile;
  auto& shared = shared_memory<SimtShared>();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.matmul.rows);
  const TilePlace place = place_tile(blockIdx.x, args.row_tiles, args.column_tiles);
  if (place.row * kTile >= rows.count) return;
  const MatmulArgs matmul = matmul_of(args, blockIdx.y);
  simt_tile(matmul, shared, rows, place.row * kTile, place.column * kTile);
}

// ---- Launching ----------------------------------------------------------------------------------

struct HeadMatmulShape {
  HeadMatmulArgs constant;  // without pointers and tiles
  int32_t which;            // rows the op works on
  int32_t heads;

  int64_t tiles(const CudaBucket& bucket, int rows, int columns) const {
    return row_tiles(bucket, rows) * column_tiles(columns);
  }
  int64_t row_tiles(const CudaBucket& bucket, int rows) const {
    return std::max<int64_t>(1, (most_rows(bucket, which) + rows - 1) / rows);
  }
  int64_t column_tiles(int columns) const { return (constant.matmul.n + columns - 1) / columns; }
};

void launch_heads(void (*kernel)(HeadMatmulArgs), const HeadMatmulShape& shape,
                  const CudaLaunch& launch, int rows, int columns, unsigned threads,
                  size_t shared_bytes) {
  LaunchShape grid =
      row_shape(launch, static_cast<unsigned>(shape.tiles(launch.bucket, rows, columns)), threads,
                shared_bytes);
  grid.blocks_y = static_cast<unsigned>(shape.heads);
  HeadMatmulArgs args = shape.constant;
  args.row_tiles = static_cast<int32_t>(shape.row_tiles(launch.bucket, rows));
  args.column_tiles = static_cast<int32_t>(shape.column_tiles(columns));
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    const CudaOperands& at = launch.operands[i];
    args.matmul.rows = {launch.ranks[i].step.counts, shape.which};
    args.matmul.x = at.in[0];
    args.matmul.w = at.in[1];
    args.matmul.y = at.out[0];
    nanoweave::launch(kernel, grid, launch.stream, args);
  }
}

template <typename T, typename Config>
void launch_tiles(const HeadMatmulShape& shape, const CudaLaunch& launch) {
  launch_heads(head_tile_kernel<T, Config>, shape, launch, Config::kRows, Config::kColumns,
               Config::kThreads, Config::kSharedBytes);
}

template <typename T>
CudaKernel make_tiles(const HeadMatmulShape& shape) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                const int64_t large =
                    shape.tiles(launch.bucket, LargeTile::kRows, LargeTile::kColumns) * shape.heads;
                const int64_t rows = most_rows(launch.bucket, shape.which);
                if (rows <= SmallTile::kRows)
                  launch_tiles<T, SmallTile>(shape, launch);
                else if (rows > MediumTile::kRows && large >= launch.sm_budget)
                  launch_tiles<T, LargeTile>(shape, launch);
                else
                  launch_tiles<T, MediumTile>(shape, launch);
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(head_tile_kernel<T, LargeTile>, LargeTile::kSharedBytes),
                        cuda_function(head_tile_kernel<T, MediumTile>, MediumTile::kSharedBytes),
                        cuda_function(head_tile_kernel<T, SmallTile>, SmallTile::kSharedBytes)}};
}

CudaKernel make_simt(const HeadMatmulShape& shape) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                launch_heads(head_simt_kernel, shape, launch, SimtConfig::kTile, SimtConfig::kTile,
                             SimtConfig::kThreads, sizeof(SimtShared));
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(head_simt_kernel, sizeof(SimtShared))}};
}

}  // namespace

CudaKernel prepare_cuda_head_matmul(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& w = *op.input(1);
  const BufferDesc& y = op.output(0);
  op.require(x.cols() <= INT32_MAX / 2 && y.cols() <= INT32_MAX / 2, "the matrix is too large");
  HeadMatmulShape shape{};
  shape.which = which_rows(y, op.op.part());
  shape.heads = static_cast<int32_t>(op.integer("heads"));
  HeadMatmulArgs& args = shape.constant;
  args.x_columns = static_cast<int32_t>(x.cols() / shape.heads);
  args.padded = static_cast<int32_t>(w.max_rows() / shape.heads);
  args.matmul.x_dtype = x.dtype;
  args.matmul.w_dtype = w.dtype;
  args.matmul.y_dtype = y.dtype;
  args.matmul.n = static_cast<int32_t>(y.cols() / shape.heads);
  args.matmul.k = static_cast<int32_t>(w.cols());
  args.matmul.x_pitch = static_cast<int32_t>(x.cols());
  args.matmul.y_pitch = static_cast<int32_t>(y.cols());
  const bool whole_vectors = args.matmul.k % 8 == 0 && args.x_columns % 8 == 0;
  const bool tensor_cores = whole_vectors && x.dtype == w.dtype && x.dtype != DType::kF32 &&
                            (y.dtype == x.dtype || y.dtype == DType::kF32);
  if (!tensor_cores) return make_simt(shape);
  return x.dtype == DType::kBf16 ? make_tiles<bf16>(shape) : make_tiles<f16>(shape);
}

}  // namespace nanoweave
