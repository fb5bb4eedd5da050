// Four lanes of the compilers' vector extension as a Simd, for any target; see simd_avx512.h.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace nanoweave {
namespace {

struct Portable {
  using Vec = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Halves = uint16_t __attribute__((vector_size(8)));
  static constexpr int kLanes = 4;
  // Sums of a matrix tile: 4 rows · 2 vectors, 8 of 16 registers.
  static constexpr int kTileRows = 4;
  static constexpr int kTileVecs = 2;
  static constexpr bool kHasPairs = false;

  static Vec zero() { return Vec{}; }
  static Vec set(float value) { return Vec{value, value, value, value}; }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec div(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }     // rounded once or twice
  static Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }    // rounded once or twice
  static Vec max(Vec a, Vec b) { return select(a > b, a, b); }  // b when either is NaN
  static Vec min(Vec a, Vec b) { return select(a < b, a, b); }  // b when either is NaN
  static Vec abs(Vec a) { return floats(ints(a) & 0x7fffffff); }
  static Vec copy_sign(Vec magnitude, Vec sign) {
    return floats((ints(magnitude) & 0x7fffffff) | (ints(sign) & INT32_MIN));
  }
  static Vec round(Vec a) { return (a + 0x1.8p23f) - 0x1.8p23f; }  // |a| < 2^22
  // x < y ? a : b
  static Vec where_less(Vec x, Vec y, Vec a, Vec b) { return select(x < y, a, b); }
  // a · 2^n for integral n within ±126
  static Vec scale(Vec a, Vec n) {
    return a * floats((__builtin_convertvector(n, Ints) << 23) + 0x3f800000);
  }
  static bool any_equal(Vec a, Vec b) {
    const Ints equal = a == b;
    return (equal[0] | equal[1] | equal[2] | equal[3]) != 0;
  }
  static bool any_at_least(Vec a, Vec b) {
    const Ints at_least = a >= b;
    return (at_least[0] | at_least[1] | at_least[2] | at_least[3]) != 0;
  }

  static float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float largest(Vec a) {
    float best = a[0];
    for (int i = 1; i < kLanes; ++i) best = a[i] > best ? a[i] : best;
    return best;
  }
  static double sum_double(Vec a) {
    return (static_cast<double>(a[0]) + a[2]) + (static_cast<double>(a[1]) + a[3]);
  }
  // Lane i is `first + i`.
  static Vec ramp(float first) { return Vec{first, first + 1, first + 2, first + 3}; }

  static Vec load(const float* p) {
    Vec value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  static Vec load(const bf16* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    return floats(__builtin_convertvector(halves, Ints) << 16);
  }
  static Vec load(const f16* p) {
    return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  static void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
  static void store(bf16* p, Vec a) {
    // Nearest even by adding 0x7fff and the kept low bit; NaN is quieted instead.
    const Ints kept = ints(a) >> 16;
    const Ints rounded = (ints(a) + 0x7fff + (kept & 1)) >> 16;
    const Ints is_nan = a != a;
    const Halves halves =
        __builtin_convertvector((is_nan & (kept | 0x40)) | (~is_nan & rounded), Halves);
    std::memcpy(p, &halves, sizeof halves);
  }
  static void store(f16* p, Vec a) {
    for (int i = 0; i < kLanes; ++i) p[i] = to_f16(a[i]);
  }

  // The first n < kLanes elements; the other lanes are zero.
  template <typename T>
  static Vec load_part(const T* p, int64_t n) {
    T whole[kLanes] = {};
    std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(T));
    return load(whole);
  }
  template <typename T>
  static void store_part(T* p, Vec a, int64_t n) {
    T whole[kLanes];
    store(whole, a);
    std::memcpy(p, whole, static_cast<size_t>(n) * sizeof(T));
  }

  // rows[i][j] ↔ rows[j][i]
  [[gnu::always_inline]] static void transpose(Vec (&rows)[4]) {
    Vec columns[4];
    for (int i = 0; i < 4; ++i) columns[i] = Vec{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
    for (int i = 0; i < 4; ++i) rows[i] = columns[i];
  }

 private:
  static Ints ints(Vec a) { return reinterpret_cast<Ints>(a); }
  static Vec floats(Ints a) { return reinterpret_cast<Vec>(a); }
  static Vec select(Ints mask, Vec a, Vec b) {
    return floats((mask & ints(a)) | (~mask & ints(b)));
  }
};

}  // namespace
}  // namespace nanoweave
