// VectorKernels for AVX2 with FMA and F16C.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

// clang-format off: the Simd first, then what is written over it.
#include "cpu/simd_avx2.h"
namespace nanoweave {
namespace {
using Simd = Avx2;
}
}  // namespace nanoweave
#include "cpu/simd_math.h"
#include "cpu/attention_kernel.h"
#include "cpu/row_kernels.h"
// clang-format on

namespace nanoweave {

const VectorKernels kAvx2Kernels = row_kernels();

}  // namespace nanoweave

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
