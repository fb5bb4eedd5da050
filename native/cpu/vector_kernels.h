// VectorKernels: the row primitives of the CPU ops, compiled once per instruction set and chosen at
// run time. All arithmetic is float32; bf16 and f16 rows are converted on the way in and out. A
// kernel's result depends on its arguments alone, never on how rows are spread over threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa.h"

namespace nanoweave {

struct AttentionUnit;
struct AttentionState;

struct VectorKernels {
  // Conversion of n elements to and from float32.
  void (*load)(DType dtype, const std::byte* source, int64_t n, float* out);
  void (*store)(DType dtype, const float* source, int64_t n, std::byte* out);
  // total[i] += source[i]
  void (*accumulate)(DType dtype, const std::byte* source, int64_t n, float* total);
  // Σ x²
  float (*sum_squares)(const float* x, int64_t n);
  // out[i] = x[i] · scale · weight[i]; out may be x
  void (*scale_mul)(const float* x, float scale, const float* weight, int64_t n, float* out);
  // out[i] = silu(gate[i]) · up[i], or gelu_tanh(gate[i]) · up[i], all of one dtype.
  void (*silu_mul)(DType dtype, const std::byte* gate, const std::byte* up, int64_t n,
                   std::byte* out);
  void (*gelu_mul)(DType dtype, const std::byte* gate, const std::byte* up, int64_t n,
                   std::byte* out);
  // Rotates the pairs (x[i], x[i + half]) by the angles whose cosines and sines are given.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
  // The largest element, NaN left out; −∞ when there is none.
  float (*max)(const float* x, int64_t n);
  // Index of the first element equal to `value`, or n.
  int64_t (*find)(const float* x, int64_t n, float value);
  // Writes the indices of elements ≥ threshold, ascending; returns how many. Room for n indices.
  int64_t (*select)(const float* x, int64_t n, float threshold, int32_t* indices);
  // Elements < threshold become zero.
  void (*clear_below)(float* x, int64_t n, float threshold);
  double (*sum)(const float* x, int64_t n);
  // Σ exp((x[i] − largest) · scale), in double; NaN counts as −∞, +∞ as the largest float. The
  // terms go to `out` unless it is null; out may be x.
  double (*exp_weights)(const float* x, int64_t n, float largest, float scale, float* out);
  // Attention of one tile of queries over one range of keys (attention.h).
  void (*attend)(const AttentionUnit& unit);
  // Merges the partial states of all splits, in order, into a unit's outputs.
  void (*finish_attention)(const AttentionUnit& unit, const AttentionState* partials,
                           int64_t num_partials);
};

const VectorKernels& vector_kernels(CpuIsa isa);

// The form compiled for each instruction set.
extern const VectorKernels kPortableKernels;
extern const VectorKernels kAvx2Kernels;
extern const VectorKernels kAvx512Kernels;
extern const VectorKernels kAvx512Bf16Kernels;

}  // namespace nanoweave
