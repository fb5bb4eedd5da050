// Matmul kernel for AVX512-BF16: pairs of bf16 products summed into float32. vdpbf16ps adds a pair
// as two fused multiply-adds, rounds to nearest even and treats subnormals as zero.
#include "cpu/matmul_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "cpu/matmul_avx512.h"
#include "cpu/matmul_sweep.h"

namespace nanoweave {
namespace {

struct PairDot : Avx512 {
  using Weight = __m512bh;
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 1;
  static Weight weight(const std::byte* group, int, int) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(group));
  }
  static __m512bh broadcast(const std::byte* x) {
    int pair;
    std::memcpy(&pair, x, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static Vec multiply_add(Weight weight, __m512bh pair, Vec sum) {
    return _mm512_dpbf16_ps(sum, weight, pair);
  }
};

constexpr MatmulKernel kPairDot = make_kernel<PairDot>("avx512-bf16", DType::kBf16);

}  // namespace

const MatmulKernel* avx512_bf16_kernel() { return &kPairDot; }

}  // namespace nanoweave

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace nanoweave {
const MatmulKernel* avx512_bf16_kernel() { return nullptr; }
}  // namespace nanoweave
#endif
