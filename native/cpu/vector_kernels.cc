// The choice of VectorKernels, and their portable form.
#include "cpu/vector_kernels.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "core/tensor.h"

namespace nanoweave {
namespace {

void accumulate(DType dtype, const std::byte* source, int64_t n, float* total) {
  constexpr int64_t kChunk = 256;
  float values[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = n - begin < kChunk ? n - begin : kChunk;
    load_floats(dtype, source + begin * dtype_bytes(dtype), count, values);
    for (int64_t i = 0; i < count; ++i) total[begin + i] += values[i];
  }
}

float sum_squares(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void scale_mul(const float* x, float scale, const float* weight, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void gelu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    out[i] = 0.5f * x * (1.0f + std::tanh(inner)) * up[i];
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

float max(const float* x, int64_t n) {
  float largest = -INFINITY;
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

int64_t find(const float* x, int64_t n, float value) { return std::find(x, x + n, value) - x; }

double exp_weights(const float* x, int64_t n, float largest, float scale, float* out) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = std::isnan(x[i]) ? -INFINITY : std::min(x[i], FLT_MAX);
    const float weight = std::exp((value - largest) * scale);
    if (out != nullptr) out[i] = weight;
    total += weight;
  }
  return total;
}

}  // namespace

const VectorKernels& vector_kernels(CpuIsa isa) {
  static const VectorKernels portable = {
      .load = load_floats,
      .store = store_floats,
      .accumulate = accumulate,
      .sum_squares = sum_squares,
      .scale_mul = scale_mul,
      .silu_mul = silu_mul,
      .gelu_mul = gelu_mul,
      .rotate = rotate,
      .max = max,
      .find = find,
      .exp_weights = exp_weights,
  };
  return portable;
}

}  // namespace nanoweave
