// What the AVX-512 matmul kernels share: vectors, block sizes, rounding of y. Included under the
// including file's target pragma, in an unnamed namespace, for the reason given in matmul_sweep.h.
#pragma once

#include <immintrin.h>

#include <cstddef>

// GCC 12 warns about its own header's deliberately undefined merge operands (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace nanoweave {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kOperandBytes = 4;
  // 8 rows · 3 vectors of sums, 3 of weights, 1 of x: 28 of the 32 registers. Measured on Zen 4:
  // 8 · 3 reading ahead equals 6 · 4 without it when rows are many and beats it by 10 to 20 % at 8
  // to 64 rows.
  static constexpr int kMaxRows = 8;
  static constexpr int kReadAheadRows = 4;
  static constexpr int panels_for(int rows) { return rows <= 6 ? 4 : 3; }

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec load(const float* source) { return _mm512_loadu_ps(source); }
  static void store(float* out, Vec value) { _mm512_storeu_ps(out, value); }
  static Vec broadcast(const std::byte* x) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(x));
  }
  static Vec multiply_add(Vec weight, Vec value, Vec sum) {
    return _mm512_fmadd_ps(weight, value, sum);
  }

  // Nearest even by adding 0x7fff and the kept low bit; NaN is quieted instead. (The conversion
  // instruction of AVX512-BF16 flushes subnormals.)
  static void store_bf16(const float* values, std::byte* out) {
    const Vec value = load(values);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i kept = _mm512_srli_epi32(bits, 16);
    const __m512i bias =
        _mm512_add_epi32(_mm512_and_si512(kept, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_or_epi32(rounded, is_nan, kept, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(result));
  }
  static void store_f16(const float* values, std::byte* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(load(values), _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace nanoweave
