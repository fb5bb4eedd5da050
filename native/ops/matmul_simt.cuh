// A block's 64×64 of a matmul in float32 multiply-adds, a thread 4×4 of it, from tiles of 16
// columns in shared memory; every pair of dtypes and every K. One accumulation chain over k per
// element: a row's bits do not depend on the number of rows.
#pragma once

#include "ops/matmul.cuh"

namespace nanoweave {

struct SimtConfig {
  static constexpr int kTile = 64;
  static constexpr int kDepth = 16;
  static constexpr int kEach = 4;  // rows and columns of a thread
  static constexpr int kSide = kTile / kEach;
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kPitch = kTile + 4;
};

// Tiles of x and W, transposed: [depth][row].
struct SimtShared {
  alignas(16) float x[SimtConfig::kDepth][SimtConfig::kPitch];
  alignas(16) float w[SimtConfig::kDepth][SimtConfig::kPitch];
};

__device__ __forceinline__ void load_tile(float (&to)[SimtConfig::kDepth][SimtConfig::kPitch],
                                          DType dtype, const std::byte* from, int64_t pitch,
                                          int64_t first_row, int64_t end_row, int first, int k) {
  for (int i = threadIdx.x; i < SimtConfig::kTile * SimtConfig::kDepth; i += SimtConfig::kThreads) {
    const int row = i / SimtConfig::kDepth, column = i % SimtConfig::kDepth;
    const bool exists = first_row + row < end_row && first + column < k;
    to[column][row] =
        exists ? load_element(dtype, from, (first_row + row) * pitch + first + column) : 0.0f;
  }
}

// y[rows.begin + first_row.., first_column..]; the block's shared tiles are free again at the end.
__device__ __forceinline__ void simt_tile(const MatmulArgs& args, SimtShared& shared,
                                          const RowRange& rows, int first_row, int first_column) {
  constexpr int kEach = SimtConfig::kEach, kSide = SimtConfig::kSide;
  const int my_row = threadIdx.x / kSide * kEach, my_column = threadIdx.x % kSide * kEach;

  float sums[kEach][kEach] = {};
  for (int first = 0; first < args.k; first += SimtConfig::kDepth) {
    load_tile(shared.x, args.x_dtype, args.x, args.x_pitch, rows.begin + int64_t{first_row},
              rows.begin + int64_t{rows.count}, first, args.k);
    load_tile(shared.w, args.w_dtype, args.w, args.k, first_column, args.n, first, args.k);
    __syncthreads();  // the tiles are there
#pragma unroll
    for (int k = 0; k < SimtConfig::kDepth; ++k) {
      float x[kEach], w[kEach];
      load_vector<float, kEach>(&shared.x[k][my_row], x);
      load_vector<float, kEach>(&shared.w[k][my_column], w);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += x[i] * w[j];
    }
    __syncthreads();  // the tiles may be overwritten
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first_row + my_row + i >= rows.count) continue;
    const int64_t row = rows.begin + int64_t{first_row + my_row + i};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int column = first_column + my_column + j;
      if (column < args.n)
        store_element(args.y_dtype, args.y, row * args.y_pitch + column,
                      finish_sum(args, column, sums[i][j]));
    }
  }
}

}  // namespace nanoweave
