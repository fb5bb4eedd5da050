// Element conversion between storage types and float32. The loops are written once in plain C++ and
// compiled for AVX2, AVX-512 and the baseline; the machine picks at first use. f16 has intrinsics
// because compilers do not vectorise its scalar form.
#include "core/tensor.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace nanoweave {

namespace {

enum class Vector { kPortable, kAvx2, kAvx512 };

Vector best_vector() {
  static const Vector best = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return Vector::kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return Vector::kAvx2;
    return Vector::kPortable;
  }();
  return best;
}

template <typename T>
[[gnu::always_inline]] inline void load_loop(const T* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_float(source[i]);
}

[[gnu::always_inline]] inline void store_bf16_loop(const float* source, int64_t count, bf16* out) {
  for (int64_t i = 0; i < count; ++i) {  // branch-free form of to_bf16, so that it vectorises
    const uint32_t bits = std::bit_cast<uint32_t>(source[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    out[i].bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

__attribute__((target("avx2"))) void load_bf16_avx2(const bf16* source, int64_t count, float* out) {
  load_loop(source, count, out);
}
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) void load_bf16_avx512(
    const bf16* source, int64_t count, float* out) {
  load_loop(source, count, out);
}
__attribute__((target("avx2"))) void store_bf16_avx2(const float* source, int64_t count,
                                                     bf16* out) {
  store_bf16_loop(source, count, out);
}
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) void store_bf16_avx512(
    const float* source, int64_t count, bf16* out) {
  store_bf16_loop(source, count, out);
}

__attribute__((target("avx2,f16c"))) void load_f16_f16c(const f16* source, int64_t count,
                                                        float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(
        out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  for (; i < count; ++i) out[i] = to_float(source[i]);
}

__attribute__((target("avx2,f16c"))) void store_f16_f16c(const float* source, int64_t count,
                                                         f16* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) out[i] = to_f16(source[i]);
}

void load_bf16(const bf16* source, int64_t count, float* out) {
  switch (best_vector()) {
    case Vector::kAvx512:
      return load_bf16_avx512(source, count, out);
    case Vector::kAvx2:
      return load_bf16_avx2(source, count, out);
    case Vector::kPortable:
      return load_loop(source, count, out);
  }
}

void store_bf16(const float* source, int64_t count, bf16* out) {
  switch (best_vector()) {
    case Vector::kAvx512:
      return store_bf16_avx512(source, count, out);
    case Vector::kAvx2:
      return store_bf16_avx2(source, count, out);
    case Vector::kPortable:
      return store_bf16_loop(source, count, out);
  }
}

void load_f16(const f16* source, int64_t count, float* out) {
  if (best_vector() == Vector::kPortable) return load_loop(source, count, out);
  load_f16_f16c(source, count, out);
}

void store_f16(const float* source, int64_t count, f16* out) {
  if (best_vector() != Vector::kPortable) return store_f16_f16c(source, count, out);
  for (int64_t i = 0; i < count; ++i) out[i] = to_f16(source[i]);
}

// Nearest integer, saturated; NaN becomes the lower bound.
template <typename T>
void store_integers(const float* source, int64_t count, T* out, float low, float high) {
  for (int64_t i = 0; i < count; ++i) {
    const float rounded = std::nearbyint(source[i]);
    if (!(rounded > low))
      out[i] = std::numeric_limits<T>::min();
    else if (rounded >= high)
      out[i] = std::numeric_limits<T>::max();
    else
      out[i] = static_cast<T>(rounded);
  }
}

}  // namespace

void load_floats(DType dtype, const std::byte* source, int64_t count, float* out) {
  if (count <= 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, source, static_cast<size_t>(count) * 4);
      return;
    case DType::kBf16:
      return load_bf16(reinterpret_cast<const bf16*>(source), count, out);
    case DType::kF16:
      return load_f16(reinterpret_cast<const f16*>(source), count, out);
    case DType::kI32:
      for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(reinterpret_cast<const int32_t*>(source)[i]);
      return;
    case DType::kU8:
      for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(std::to_integer<uint8_t>(source[i]));
      return;
  }
}

void store_floats(DType dtype, const float* source, int64_t count, std::byte* out) {
  if (count <= 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, source, static_cast<size_t>(count) * 4);
      return;
    case DType::kBf16:
      return store_bf16(source, count, reinterpret_cast<bf16*>(out));
    case DType::kF16:
      return store_f16(source, count, reinterpret_cast<f16*>(out));
    case DType::kI32:
      return store_integers(source, count, reinterpret_cast<int32_t*>(out), -2147483648.0f,
                            2147483648.0f);
    case DType::kU8:
      return store_integers(source, count, reinterpret_cast<uint8_t*>(out), 0.0f, 255.0f);
  }
}

}  // namespace nanoweave
