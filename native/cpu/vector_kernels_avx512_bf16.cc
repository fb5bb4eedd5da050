// VectorKernels for AVX-512 with BF16: attention multiplies bf16 queries and keys in pairs.
#include "cpu/vector_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/attention.h"

// Everything from here on, and nothing before, is compiled for this instruction set.
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif

// clang-format off: the Simd first, then what is written over it.
#include "cpu/simd_avx512.h"
namespace nanoweave {
namespace {
struct Simd : Avx512 {
  static constexpr bool kHasPairs = true;
  // sum + a.low · b.low + a.high · b.high of the bf16 pairs in each lane
  static Vec dot_pairs(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
}
}  // namespace nanoweave
#include "cpu/simd_math.h"
#include "cpu/attention_kernel.h"
#include "cpu/row_kernels.h"
// clang-format on

namespace nanoweave {

const VectorKernels kAvx512Bf16Kernels = row_kernels();

}  // namespace nanoweave

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
