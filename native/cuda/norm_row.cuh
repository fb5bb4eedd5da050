// The arithmetic of one normalised row by one block, shared by rms_norm, add_rms_norm and
// all_reduce_rms_norm. The row waits in shared memory as float32 between the pass that sums squares
// and the pass that scales; a thread reads back only what it wrote, so no barrier stands between
// them but the one of the sum.
#pragma once

#include "cuda/numeric.cuh"

namespace nanoweave {

// Shared memory of a block that normalises rows: two scratches, so that consecutive sums need no
// barrier between them, then the row.
struct NormShared {
  float sums[3][kWarpSize];
  alignas(16) float row[1];  // [cols]
};
inline constexpr int64_t kMaxNormCols = 24576;  // 96 KiB: what every architecture has
inline constexpr int64_t norm_shared_bytes(int64_t cols) {
  return static_cast<int64_t>(sizeof(NormShared)) + cols * static_cast<int64_t>(sizeof(float));
}

// 1 / sqrt(mean(x²) + eps) from this thread's part of the sum of squares. `sums`: a scratch that no
// thread reads any more.
template <int kThreads>
__device__ __forceinline__ float inverse_rms(float sum_squares, int cols, float eps, float* sums) {
  const float total = block_sum<kThreads>(sum_squares, sums);
  return 1.0f / sqrtf(total / static_cast<float>(cols) + eps);
}

// Calls body(i) for the first element of each of this thread's vectors.
template <int kThreads, int kWidth, typename Body>
__device__ __forceinline__ void for_own_vectors(int cols, const Body& body) {
  for (int i = static_cast<int>(threadIdx.x) * kWidth; i < cols; i += kThreads * kWidth) body(i);
}

template <int kWidth>
__device__ __forceinline__ float squares(const float (&values)[kWidth]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sum += values[j] * values[j];
  return sum;
}

// A vector of the row to and from shared memory, or of weights from global memory.
template <int kWidth>
__device__ __forceinline__ void put_floats(float* to, const float (&values)[kWidth]) {
  constexpr int kStep = kWidth < 4 ? kWidth : 4;
#pragma unroll
  for (int j = 0; j < kWidth; j += kStep) {
    float piece[kStep];
#pragma unroll
    for (int k = 0; k < kStep; ++k) piece[k] = values[j + k];
    store_vector<float, kStep>(to + j, piece);
  }
}
template <int kWidth>
__device__ __forceinline__ void get_floats(const float* from, float (&values)[kWidth]) {
  constexpr int kStep = kWidth < 4 ? kWidth : 4;
#pragma unroll
  for (int j = 0; j < kWidth; j += kStep) {
    float piece[kStep];
    load_vector<float, kStep>(from + j, piece);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[j + k] = piece[k];
  }
}

// values = row[i..] · scale · weight[i..]
template <int kWidth>
__device__ __forceinline__ void scale_by_weight(const float* row, const float* weight, float scale,
                                                float (&values)[kWidth]) {
  float weights[kWidth];
  get_floats(row, values);
  get_floats(weight, weights);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = values[j] * scale * weights[j];
}

// The arithmetic that follows a row's sum, as add_normalize_row() on the host: the row in shared
// memory comes in as the sum x, residual' = residual + (post_weight ? rms(x)·post_weight : x) is
// stored rounded, and the row goes out as residual' unrounded. Returns the scale of its norm.
// `sum_squares` is this thread's, of x; it matters with a post_weight only.
template <typename T, int kThreads, int kWidth>
__device__ __forceinline__ float add_residual(NormShared& shared, int turn, float sum_squares,
                                              T* residual, const float* post_weight, int cols,
                                              float eps) {
  float post_scale = 1;
  if (post_weight != nullptr)
    post_scale = inverse_rms<kThreads>(sum_squares, cols, eps, shared.sums[2]);
  float sum = 0;
  for_own_vectors<kThreads, kWidth>(cols, [&](int i) {
    float values[kWidth], before[kWidth];
    load_vector<T, kWidth>(residual + i, before);
    if (post_weight != nullptr)
      scale_by_weight(shared.row + i, post_weight + i, post_scale, values);
    else
      get_floats(shared.row + i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] += before[j];
    store_vector<T, kWidth>(residual + i, values);
    put_floats(shared.row + i, values);
    sum += squares(values);
  });
  return inverse_rms<kThreads>(sum, cols, eps, shared.sums[turn]);
}

}  // namespace nanoweave
