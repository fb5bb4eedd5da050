// AVX-512 (F, BW, VL, DQ) as a Simd: the vector type that simd_math.h, row_kernels.h and
// attention_kernel.h are written over. Included under the target pragma of a vector_kernels_*.cc,
// in an unnamed namespace, so that no code compiled for AVX-512 is shared with other files.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

// GCC 12 warns about its own header's deliberately undefined merge operands (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace nanoweave {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  // Sums of a matrix tile: 6 rows · 4 vectors, 24 of the 32 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 4;
  static constexpr bool kHasPairs = false;

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec set(float value) { return _mm512_set1_ps(value); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }    // a·b + c
  static Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c − a·b
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b when either is NaN
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // b when either is NaN
  static Vec abs(Vec a) { return _mm512_abs_ps(a); }
  static Vec copy_sign(Vec magnitude, Vec sign) {
    const __m512 mask = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(mask, magnitude), _mm512_and_ps(mask, sign));
  }
  static Vec round(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x < y ? a : b
  static Vec where_less(Vec x, Vec y, Vec a, Vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
  }
  // a · 2^n for integral n within ±126
  static Vec scale(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
  static bool any_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
  static bool any_at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0; }

  static float sum(Vec a) { return _mm512_reduce_add_ps(a); }
  static float largest(Vec a) { return _mm512_reduce_max_ps(a); }
  static double sum_double(Vec a) {
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)),
                                              _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))));
  }
  // Lane i is `first + i`.
  static Vec ramp(float first) {
    return _mm512_add_ps(_mm512_set1_ps(first),
                         _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec load(const bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
  static void store(bf16* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static void store(f16* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }

  // The first n < kLanes elements; the other lanes are zero.
  static Vec load_part(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static Vec load_part(const bf16* p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static Vec load_part(const f16* p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static void store_part(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), a); }
  static void store_part(bf16* p, Vec a, int64_t n) {
    _mm256_mask_storeu_epi16(p, mask(n), narrow(a));
  }
  static void store_part(f16* p, Vec a, int64_t n) {
    _mm256_mask_storeu_epi16(p, mask(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }

  // rows[i][j] ↔ rows[j][i]
  [[gnu::always_inline]] static void transpose(Vec (&rows)[16]) {
    Vec pairs[16];  // columns c and c+1 of rows 2i and 2i+1, per 128-bit lane
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    Vec quads[16];  // column 4·lane + c of rows 4i … 4i+3 in quads[4i + c]
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512d a = _mm512_castps_pd(pairs[i + half]);
        const __m512d b = _mm512_castps_pd(pairs[i + 2 + half]);
        quads[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        quads[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec low = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);  // lanes 0, 2
      const Vec high = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
      const Vec low_odd = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);  // lanes 1, 3
      const Vec high_odd = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
      rows[c] = _mm512_shuffle_f32x4(low, high, 0x88);
      rows[8 + c] = _mm512_shuffle_f32x4(low, high, 0xdd);
      rows[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
      rows[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
  }

 private:
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  // Nearest even by adding 0x7fff and the kept low bit; NaN is quieted instead. (The conversion
  // instruction of AVX512-BF16 flushes subnormals.)
  static __m256i narrow(Vec a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i kept = _mm512_srli_epi32(bits, 16);
    const __m512i bias =
        _mm512_add_epi32(_mm512_and_si512(kept, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_or_epi32(rounded, is_nan, kept, _mm512_set1_epi32(0x40)));
  }
};

}  // namespace
}  // namespace nanoweave
