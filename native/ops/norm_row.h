// The arithmetic of one normalised row, shared by rms_norm, add_rms_norm and all_reduce_rms_norm so
// that the fused and the separate ops agree bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/vector_kernels.h"

namespace nanoweave {

// row = row / sqrt(mean(row²) + eps) · weight
inline void normalize_row(const VectorKernels& kernels, float* row, int64_t cols,
                          const float* weight, float eps) {
  const float mean = kernels.sum_squares(row, cols) / static_cast<float>(cols);
  kernels.scale_mul(row, 1.0f / std::sqrt(mean + eps), weight, cols, row);
}

// What follows a row's sum: residual' = residual + (post_weight ? rms(sum)·post_weight : sum) is
// stored, and its norm is left in `row` (which comes in as the sum).
inline void add_normalize_row(const VectorKernels& kernels, float* row, int64_t cols,
                              DType residual_dtype, std::byte* residual, const float* weight,
                              const float* post_weight, float eps) {
  if (post_weight != nullptr) normalize_row(kernels, row, cols, post_weight, eps);
  kernels.accumulate(residual_dtype, residual, cols, row);
  kernels.store(residual_dtype, row, cols, residual);
  normalize_row(kernels, row, cols, weight, eps);
}

}  // namespace nanoweave
