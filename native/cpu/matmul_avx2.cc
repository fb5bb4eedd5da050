// Matmul kernels for AVX2 with FMA and F16C: float32 multiply-adds on eight lanes, two vectors to a
// panel.
#include "cpu/matmul_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/matmul_sweep.h"

namespace nanoweave {
namespace {

struct Avx2 {
  using Vec = __m256;
  using Weight = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kOperandBytes = 4;
  // 6 rows · 2 vectors of sums, 2 of weights, 1 of x: 15 of the 16 registers.
  static constexpr int kMaxRows = 6;
  static constexpr int kReadAheadRows = 2;
  static constexpr int panels_for(int) { return 1; }

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec load(const float* source) { return _mm256_loadu_ps(source); }
  static void store(float* out, Vec value) { _mm256_storeu_ps(out, value); }
  static Vec broadcast(const std::byte* x) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(x));
  }
  static Vec multiply_add(Vec weight, Vec value, Vec sum) {
    return _mm256_fmadd_ps(weight, value, sum);
  }

  // Nearest even by adding 0x7fff and the kept low bit; NaN is quieted instead.
  static __m256i bf16_lanes(Vec value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i kept = _mm256_srli_epi32(bits, 16);
    const __m256i bias =
        _mm256_add_epi32(_mm256_and_si256(kept, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i quiet = _mm256_or_si256(kept, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
  }
  static void store_bf16(const float* values, std::byte* out) {
    const __m256i packed =
        _mm256_packus_epi32(bf16_lanes(load(values)), bf16_lanes(load(values + 8)));
    // packus works within 128-bit halves: quarters 0 2 1 3.
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  static void store_f16(const float* values, std::byte* out) {
    for (int half = 0; half < 2; ++half)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + half,
                       _mm256_cvtps_ph(load(values + half * 8), _MM_FROUND_TO_NEAREST_INT));
  }
};

struct Avx2F32 : Avx2 {
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int j) {
    return load(reinterpret_cast<const float*>(group) + j * kLanes);
  }
};

// A pair's first k sits in the low half of a 32-bit lane. Two shifts clear the low half: a mask
// would take the sixteenth register and make the compiler spill sums.
struct Avx2Bf16 : Avx2 {
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 2;
  static Vec weight(const std::byte* group, int step, int j) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group) + j);
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(step == 0 ? pairs : _mm256_srli_epi32(pairs, 16), 16));
  }
};

struct Avx2F16 : Avx2 {
  static constexpr int kGroupBytes = 32;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int j) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group) + j));
  }
};

constexpr MatmulKernel kF32 = make_kernel<Avx2F32>("avx2 f32", DType::kF32);
constexpr MatmulKernel kBf16 = make_kernel<Avx2Bf16>("avx2 bf16", DType::kF32);
constexpr MatmulKernel kF16 = make_kernel<Avx2F16>("avx2 f16", DType::kF32);

}  // namespace

const MatmulKernel* avx2_kernel(DType w_dtype) {
  switch (w_dtype) {
    case DType::kF32:
      return &kF32;
    case DType::kBf16:
      return &kBf16;
    case DType::kF16:
      return &kF16;
    default:
      return nullptr;
  }
}

}  // namespace nanoweave

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace nanoweave {
const MatmulKernel* avx2_kernel(DType) { return nullptr; }
}  // namespace nanoweave
#endif
