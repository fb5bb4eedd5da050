// What the matmul kernels share: y [T, N] = x [T, K] · Wᵀ + bias, W [N, K] row-major (the CUDA form
// of the matmul layout), float32 sums; y of x's type, or float32 with an optional cap (logits).
#pragma once

#include "cuda/rows.cuh"

namespace nanoweave {

struct MatmulArgs {
  RowsRef rows;
  const std::byte* x;  // [T, k]
  const std::byte* w;  // [n, k]
  const float* bias;   // [n] or null
  std::byte* y;        // [T, n]
  DType x_dtype, w_dtype, y_dtype;
  int32_t n, k;
  // Elements from one row to the next: k and n, or more where x and y are columns of wider rows,
  // which matmul_tile.cuh and matmul_simt.cuh alone know of.
  int32_t x_pitch, y_pitch;
  float softcap;  // 0: none
};

// What becomes of a sum of column `column`.
__device__ __forceinline__ float finish_sum(const MatmulArgs& args, int column, float sum) {
  if (args.bias != nullptr) sum += args.bias[column];
  return args.softcap > 0 ? args.softcap * tanhf(sum / args.softcap) : sum;
}

// Stores two neighbouring columns of a row, the first of them even. T: type of x.
template <typename T>
__device__ __forceinline__ void store_pair(const MatmulArgs& args, int64_t row, int column,
                                           float first, float second) {
  if (column >= args.n) return;
  const int64_t at = row * args.y_pitch + column;
  const float pair[2] = {finish_sum(args, column, first),
                         column + 1 < args.n ? finish_sum(args, column + 1, second) : 0.0f};
  const bool whole = args.n % 2 == 0;  // then pairs are aligned: a pitch is a multiple of n
  if (args.y_dtype == DType::kF32) {
    auto* y = reinterpret_cast<float*>(args.y) + at;
    if (whole) {
      store_vector<float, 2>(y, pair);
    } else {
      y[0] = pair[0];
      if (column + 1 < args.n) y[1] = pair[1];
    }
  } else {
    auto* y = reinterpret_cast<T*>(args.y) + at;
    if (whole) {
      store_vector<T, 2>(y, pair);
    } else {
      y[0] = round_to<T>(pair[0]);
      if (column + 1 < args.n) y[1] = round_to<T>(pair[1]);
    }
  }
}

// Tiles are numbered so that those which are computed at the same time share rows of x and of W in
// L2: bands of kBand row tiles, column by column within a band.
struct TilePlace {
  int row, column;  // in tiles
};
__device__ __forceinline__ TilePlace place_tile(int index, int row_tiles, int column_tiles) {
  constexpr int kBand = 8;
  const int band = index / (kBand * column_tiles);
  const int height = min(kBand, row_tiles - band * kBand);
  const int inside = index - band * kBand * column_tiles;
  return {band * kBand + inside % height, inside / height};
}

// ---- Launching ----------------------------------------------------------------------------------

// What matmul.cu hands to the launchers of the kernels.
struct MatmulShape {
  MatmulArgs constant;  // without pointers
  int32_t which;        // rows the op works on
  bool bias_on_first;   // the bias is added on the first rank of a group only
  int64_t x_rows;       // of the whole buffer
};

inline MatmulArgs matmul_args(const MatmulShape& shape, const CudaRank& rank,
                              const CudaOperands& at) {
  MatmulArgs args = shape.constant;
  args.rows = {rank.step.counts, shape.which};
  args.x = at.in[0];
  args.w = at.in[1];
  const bool has_bias = !shape.bias_on_first || rank.tp_rank() == 0;
  args.bias = has_bias ? reinterpret_cast<const float*>(at.in[2]) : nullptr;
  args.y = at.out[0];
  return args;
}

// Tiles of rows and columns on tensor cores, 16-bit operands. A row's bits do not depend on the
// number of rows.
CudaKernel matmul_tile(const MatmulShape& shape);
// The same on sm_90a, with operands of whole 16-byte vectors per row (the copy engine's rule).
CudaKernel matmul_wgmma(const MatmulShape& shape, bool deterministic);
// Up to kStreamRows rows against weights that are read once, 16-bit operands.
inline constexpr int64_t kStreamRows = 32;
CudaKernel matmul_stream(const MatmulShape& shape);
// Every dtype and size, float32 multiply-adds. A row's bits do not depend on the number of rows.
CudaKernel matmul_simt(const MatmulShape& shape);

// `own`, or cuBLASLt where the op asks for it, or where it is there and pays.
CudaKernel with_cublaslt(const OpInstance& op, const MatmulShape& shape, const CudaPlan& plan,
                         CudaKernel own);

}  // namespace nanoweave
