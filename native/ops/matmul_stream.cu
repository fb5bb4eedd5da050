// Matmul of few rows: the weights are read once, straight from global memory into the operand
// registers of tensor cores, and that is all the time it takes. W is the operand with 16 rows, x
// the one with 8: a block computes kWeightRows columns of y for all rows of x, its warps take
// pieces of 64 columns of W in turn and add up at the end.
//
// An operand's lane wants columns 2t, 2t+1, 2t+8, 2t+9 of 16; instead it takes the 8 consecutive
// ones of its 16-byte load, of both W and x: the same permutation of k on both sides, which a sum
// does not see. Weights do not depend on earlier kernels, so the first loads are issued before the
// wait for them. Floor: N·K weights. Stays in the rank.
#include "ops/matmul.cuh"

namespace nanoweave {

namespace {

struct StreamConfig {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kPiece = 64;  // columns of W a warp takes at a time: 128 bytes per row
  static constexpr int kLoads = kPiece / 32;  // 16-byte loads of a lane and row
};

// kRowTiles·16 rows of W against kXTiles·8 rows of x.
template <typename T, int kRowTiles, int kXTiles>
class StreamBlock {
 public:
  static constexpr int kWarps = StreamConfig::kWarps;
  static constexpr int kPiece = StreamConfig::kPiece;
  static constexpr int kLoads = StreamConfig::kLoads;
  static constexpr int kWeightRows = kRowTiles * 16;
  static constexpr int kXRows = kXTiles * 8;

  // Sums of the warps, [warp][x row][weight row].
  struct Shared {
    float sums[kWarps][kXRows][kWeightRows];
  };

  __device__ StreamBlock(const MatmulArgs& args, int first_column)
      : args_(args), first_column_(first_column) {}

  // Weights of this warp's piece `piece`; past the end: zero.
  __device__ __forceinline__ void load_weights(int piece) {
    const T* w = reinterpret_cast<const T*>(args_.w);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(first_column_ + r * 16 + half * 8 + lane_index() / 4, args_.n - 1);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          const int k = column_of(piece, i);
          weights_[r][half][i] =
              k < args_.k ? ptx::load_streaming(w + int64_t{row} * args_.k + k) : Vec16{};
        }
      }
  }

  // Rows [first, first + kXRows) of the op's rows; the weights of the warp's first piece are
  // loaded.
  __device__ void run(const RowRange& rows, int first, Shared& shared) {
    float sums[kRowTiles][kXTiles][4] = {};
    for (int piece = warp_index(); piece * kPiece < args_.k; piece += kWarps) {
      Vec16 x[kXTiles][kLoads];
      load_x(rows, first, piece, x);
      Vec16 weights[kRowTiles][2][kLoads];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < kLoads; ++i) weights[r][half][i] = weights_[r][half][i];
      load_weights(piece + kWarps);
      multiply(weights, x, sums);
    }
    put_sums(sums, shared);
    __syncthreads();  // all warps have left their sums
    store(rows, first, shared);
    __syncthreads();  // the sums may be overwritten
  }

 private:
  __device__ static int column_of(int piece, int load) {
    return piece * kPiece + load * 32 + lane_index() % 4 * 8;
  }

  __device__ __forceinline__ void load_x(const RowRange& rows, int first, int piece,
                                         Vec16 (&x)[kXTiles][kLoads]) const {
#pragma unroll
    for (int tile = 0; tile < kXTiles; ++tile) {
      const int row = first + tile * 8 + lane_index() / 4;
      const T* from = reinterpret_cast<const T*>(args_.x) + (rows.begin + int64_t{row}) * args_.k;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = column_of(piece, i);
        x[tile][i] =
            row < rows.count && k < args_.k ? *reinterpret_cast<const Vec16*>(from + k) : Vec16{};
      }
    }
  }

  __device__ __forceinline__ void multiply(const Vec16 (&weights)[kRowTiles][2][kLoads],
                                           const Vec16 (&x)[kXTiles][kLoads],
                                           float (&sums)[kRowTiles][kXTiles][4]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint32_t a[4] = {weights[r][0][i].words[2 * step], weights[r][1][i].words[2 * step],
                                 weights[r][0][i].words[2 * step + 1],
                                 weights[r][1][i].words[2 * step + 1]};
#pragma unroll
          for (int tile = 0; tile < kXTiles; ++tile)
            ptx::multiply_add<T>(sums[r][tile], a, x[tile][i].words[2 * step],
                                 x[tile][i].words[2 * step + 1]);
        }
  }

  __device__ void put_sums(const float (&sums)[kRowTiles][kXTiles][4], Shared& shared) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int tile = 0; tile < kXTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          shared.sums[warp_index()][tile * 8 + t * 2 + i % 2][r * 16 + g + i / 2 * 8] =
              sums[r][tile][i];
  }

  __device__ void store(const RowRange& rows, int first, const Shared& shared) const {
    constexpr int kPairs = kWeightRows / 2;
    for (int pair = threadIdx.x; pair < kXRows * kPairs; pair += StreamConfig::kThreads) {
      const int row = pair / kPairs, column = pair % kPairs * 2;
      if (first + row >= rows.count) return;
      float total[2] = {0, 0};
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        total[0] += shared.sums[warp][row][column];
        total[1] += shared.sums[warp][row][column + 1];
      }
      store_pair<T>(args_, rows.begin + int64_t{first + row}, first_column_ + column, total[0],
                    total[1]);
    }
  }

  const MatmulArgs& args_;
  const int first_column_;               // of y; row of W
  Vec16 weights_[kRowTiles][2][kLoads];  // of the next piece
};

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
