// Matmul kernels for AVX-512F: float32 multiply-adds on sixteen lanes, one vector to a panel.
#include "cpu/matmul_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif

#include "cpu/matmul_avx512.h"
#include "cpu/matmul_sweep.h"

namespace nanoweave {
namespace {

struct Avx512F32 : Avx512 {
  using Weight = Vec;
  static constexpr int kReadAheadRows = 7;  // twice the bytes per multiply-add of the others
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int) { return _mm512_loadu_ps(group); }
};

// A pair's first k sits in the low half of a 32-bit lane.
struct Avx512Bf16 : Avx512 {
  using Weight = Vec;
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 2;
  static Vec weight(const std::byte* group, int step, int) {
    const __m512i pairs = _mm512_loadu_si512(group);
    return _mm512_castsi512_ps(step == 0 ? _mm512_slli_epi32(pairs, 16)
                                         : _mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
  }
};

struct Avx512F16 : Avx512 {
  using Weight = Vec;
  static constexpr int kGroupBytes = 32;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
  }
};

constexpr MatmulKernel kF32 = make_kernel<Avx512F32>("avx512 f32", DType::kF32);
constexpr MatmulKernel kBf16 = make_kernel<Avx512Bf16>("avx512 bf16", DType::kF32);
constexpr MatmulKernel kF16 = make_kernel<Avx512F16>("avx512 f16", DType::kF32);

}  // namespace

const MatmulKernel* avx512_kernel(DType w_dtype) {
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
const MatmulKernel* avx512_kernel(DType) { return nullptr; }
}  // namespace nanoweave
#endif
