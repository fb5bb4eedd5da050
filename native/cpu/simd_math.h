// exp, tanh and the logistic function on vectors of floats, and loops over rows. Included after one
// simd_<isa>.h and `using Simd = …`; everything is in an unnamed namespace because files compiled
// for different targets must not share instantiations.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace nanoweave {
namespace {

using Vec = Simd::Vec;
constexpr int kLanes = Simd::kLanes;

// exp(x) within 2 ulp. Below −87.3 zero (no subnormal results); +∞ from 88.02; NaN stays NaN.
// x = n·ln 2 + r with |r| ≤ ln 2 / 2 (Cody and Waite's two-part reduction), then e^r by its
// Taylor series to r^7 / 7!, whose remainder is below 2^-27 of the result.
[[gnu::always_inline]] inline Vec exp(Vec x) {
  const Vec lowest = Simd::set(-87.3f);
  const Vec clamped = Simd::min(Simd::set(88.02f), Simd::max(lowest, x));
  const Vec n = Simd::round(Simd::mul(clamped, Simd::set(1.44269504f)));
  Vec r = Simd::fnma(n, Simd::set(0.693359375f), clamped);
  r = Simd::fnma(n, Simd::set(-2.12194440e-4f), r);
  Vec series = Simd::set(1.0f / 5040);
  series = Simd::fma(series, r, Simd::set(1.0f / 720));
  series = Simd::fma(series, r, Simd::set(1.0f / 120));
  series = Simd::fma(series, r, Simd::set(1.0f / 24));
  series = Simd::fma(series, r, Simd::set(1.0f / 6));
  series = Simd::fma(series, r, Simd::set(0.5f));
  series = Simd::fma(series, Simd::mul(r, r), r);
  const Vec value = Simd::scale(Simd::add(series, Simd::set(1.0f)), n);
  const Vec bounded = Simd::where_less(Simd::set(88.02f), x, Simd::set(__builtin_inff()), value);
  return Simd::where_less(x, lowest, Simd::zero(), bounded);
}

// 1 / (1 + e^-x)
[[gnu::always_inline]] inline Vec logistic(Vec x) {
  const Vec one = Simd::set(1.0f);
  return Simd::div(one, Simd::add(one, exp(Simd::sub(Simd::zero(), x))));
}

// tanh(x) within 4 ulp: its Taylor series to x^11 below 0.3, else 1 − 2 / (e^2|x| + 1).
[[gnu::always_inline]] inline Vec tanh(Vec x) {
  const Vec one = Simd::set(1.0f);
  const Vec magnitude = Simd::abs(x);
  const Vec power = exp(Simd::add(magnitude, magnitude));
  const Vec large = Simd::sub(one, Simd::div(Simd::set(2.0f), Simd::add(power, one)));
  const Vec square = Simd::mul(x, x);
  Vec series = Simd::set(-1382.0f / 155925);
  series = Simd::fma(series, square, Simd::set(62.0f / 2835));
  series = Simd::fma(series, square, Simd::set(-17.0f / 315));
  series = Simd::fma(series, square, Simd::set(2.0f / 15));
  series = Simd::fma(series, square, Simd::set(-1.0f / 3));
  const Vec small = Simd::fma(Simd::mul(series, square), magnitude, magnitude);
  return Simd::copy_sign(Simd::where_less(magnitude, Simd::set(0.3f), small, large), x);
}

// Calls body(i, n) for vectors that start at element i: n = kLanes, and once less for the rest.
template <typename Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, int64_t{kLanes});
  if (i < count) body(i, count - i);
}

template <typename T>
inline Vec load_n(const T* p, int64_t n) {
  return n == kLanes ? Simd::load(p) : Simd::load_part(p, n);
}

template <typename T>
inline void store_n(T* p, Vec value, int64_t n) {
  if (n == kLanes)
    Simd::store(p, value);
  else
    Simd::store_part(p, value, n);
}

// Calls body with a typed pointer to the elements of a float dtype.
template <typename Body>
inline void with_elements(DType dtype, const std::byte* data, const Body& body) {
  if (dtype == DType::kBf16)
    body(reinterpret_cast<const bf16*>(data));
  else if (dtype == DType::kF16)
    body(reinterpret_cast<const f16*>(data));
  else
    body(reinterpret_cast<const float*>(data));
}

template <typename Body>
inline void with_elements(DType dtype, std::byte* data, const Body& body) {
  if (dtype == DType::kBf16)
    body(reinterpret_cast<bf16*>(data));
  else if (dtype == DType::kF16)
    body(reinterpret_cast<f16*>(data));
  else
    body(reinterpret_cast<float*>(data));
}

}  // namespace
}  // namespace nanoweave
