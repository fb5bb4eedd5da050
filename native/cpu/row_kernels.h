// The row primitives of VectorKernels, written once over Simd. Included after simd_math.h by each
// vector_kernels_<isa>.cc; in an unnamed namespace for the reason given there.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace nanoweave {
namespace {

void load_row(DType dtype, const std::byte* source, int64_t count, float* out) {
  with_elements(dtype, source, [&](const auto* p) {
    for_vectors(count, [&](int64_t i, int64_t n) { store_n(out + i, load_n(p + i, n), n); });
  });
}

void store_row(DType dtype, const float* source, int64_t count, std::byte* out) {
  with_elements(dtype, out, [&](auto* p) {
    for_vectors(count, [&](int64_t i, int64_t n) { store_n(p + i, load_n(source + i, n), n); });
  });
}

void accumulate_row(DType dtype, const std::byte* source, int64_t count, float* total) {
  with_elements(dtype, source, [&](const auto* p) {
    for_vectors(count, [&](int64_t i, int64_t n) {
      store_n(total + i, Simd::add(load_n(total + i, n), load_n(p + i, n)), n);
    });
  });
}

// Four chains hide the latency of the multiply-add; which element joins which chain depends on
// the count alone.
float sum_squares(const float* x, int64_t count) {
  Vec sums[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const Vec value = Simd::load(x + i + j * kLanes);
      sums[j] = Simd::fma(value, value, sums[j]);
    }
  for_vectors(count - i, [&](int64_t rest, int64_t n) {
    const Vec value = load_n(x + i + rest, n);
    sums[0] = Simd::fma(value, value, sums[0]);
  });
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

void scale_mul(const float* x, float scale, const float* weight, int64_t count, float* out) {
  const Vec factor = Simd::set(scale);
  for_vectors(count, [&](int64_t i, int64_t n) {
    store_n(out + i, Simd::mul(Simd::mul(load_n(x + i, n), factor), load_n(weight + i, n)), n);
  });
}

// silu(x) = x · logistic(x)
struct Silu {
  static Vec of(Vec x) { return Simd::mul(x, logistic(x)); }
};

// gelu_tanh(x) = x/2 · (1 + tanh(u)) = x · logistic(2u) with u = sqrt(2/π) · (x + 0.044715 x³)
struct Gelu {
  static Vec of(Vec x) {
    const Vec cubic = Simd::fma(Simd::mul(Simd::mul(x, x), Simd::set(0.044715f)), x, x);
    return Simd::mul(x, logistic(Simd::mul(cubic, Simd::set(1.5957691216057308f))));
  }
};

template <typename Activation>
void gated_mul(DType dtype, const std::byte* gate, const std::byte* up, int64_t count,
               std::byte* out) {
  with_elements(dtype, out, [&](auto* y) {
    using T = std::remove_pointer_t<decltype(y)>;
    const T* g = reinterpret_cast<const T*>(gate);
    const T* u = reinterpret_cast<const T*>(up);
    for_vectors(count, [&](int64_t i, int64_t n) {
      store_n(y + i, Simd::mul(Activation::of(load_n(g + i, n)), load_n(u + i, n)), n);
    });
  });
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for_vectors(half, [&](int64_t i, int64_t n) {
    const Vec a = load_n(x + i, n);
    const Vec b = load_n(x + half + i, n);
    const Vec c = load_n(cos + i, n);
    const Vec s = load_n(sin + i, n);
    store_n(x + i, Simd::fnma(b, s, Simd::mul(a, c)), n);
    store_n(x + half + i, Simd::fma(a, s, Simd::mul(b, c)), n);
  });
}

float max_of(const float* x, int64_t count) {
  const Vec none = Simd::set(-__builtin_inff());
  Vec best[2] = {none, none};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    for (int j = 0; j < 2; ++j) best[j] = Simd::max(Simd::load(x + i + j * kLanes), best[j]);
  float largest = Simd::largest(Simd::max(best[0], best[1]));
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

int64_t find_first(const float* x, int64_t count, float value) {
  const Vec wanted = Simd::set(value);
  int64_t i = 0;
  while (i + kLanes <= count && !Simd::any_equal(Simd::load(x + i), wanted)) i += kLanes;
  while (i < count && x[i] != value) ++i;
  return i;
}

int64_t select_at_least(const float* x, int64_t count, float threshold, int32_t* indices) {
  const Vec least = Simd::set(threshold);
  int64_t found = 0;
  // Without a branch on each element: which ones pass cannot be predicted.
  const auto scan = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      indices[found] = static_cast<int32_t>(i);
      found += x[i] >= threshold ? 1 : 0;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    if (Simd::any_at_least(Simd::load(x + i), least)) scan(i, i + kLanes);
  scan(i, count);
  return found;
}

void clear_below(float* x, int64_t count, float threshold) {
  const Vec least = Simd::set(threshold);
  for_vectors(count, [&](int64_t i, int64_t n) {
    const Vec value = load_n(x + i, n);
    store_n(x + i, Simd::where_less(value, least, Simd::zero(), value), n);
  });
}

// Sums vectors in float32 and every eight of them in double.
class LongSum {
 public:
  LongSum() : partial_(Simd::zero()) {}
  void add(Vec value) {
    partial_ = Simd::add(partial_, value);
    if (++pending_ == 8) flush();
  }
  double total() {
    flush();
    return total_;
  }

 private:
  void flush() {
    total_ += Simd::sum_double(partial_);
    partial_ = Simd::zero();
    pending_ = 0;
  }
  Vec partial_;
  int pending_ = 0;
  double total_ = 0;
};

double sum_of(const float* x, int64_t count) {
  LongSum sum;
  for_vectors(count, [&](int64_t i, int64_t n) { sum.add(load_n(x + i, n)); });
  return sum.total();
}

double exp_weights(const float* x, int64_t count, float largest, float scale, float* out) {
  const Vec shift = Simd::set(largest);
  const Vec factor = Simd::set(scale);
  LongSum sum;
  for_vectors(count, [&](int64_t i, int64_t n) {
    // NaN → −∞ by the operand order of max; +∞ → the largest float.
    Vec value = Simd::max(load_n(x + i, n), Simd::set(-__builtin_inff()));
    value = Simd::min(value, Simd::set(FLT_MAX));
    Vec weight = exp(Simd::mul(Simd::sub(value, shift), factor));
    if (n < kLanes)  // lanes past the end do not count
      weight =
          Simd::where_less(Simd::ramp(0), Simd::set(static_cast<float>(n)), weight, Simd::zero());
    sum.add(weight);
    if (out != nullptr) store_n(out + i, weight, n);
  });
  return sum.total();
}

constexpr VectorKernels row_kernels() {
  return {
      .load = load_row,
      .store = store_row,
      .accumulate = accumulate_row,
      .sum_squares = sum_squares,
      .scale_mul = scale_mul,
      .silu_mul = gated_mul<Silu>,
      .gelu_mul = gated_mul<Gelu>,
      .rotate = rotate,
      .max = max_of,
      .find = find_first,
      .select = select_at_least,
      .clear_below = clear_below,
      .sum = sum_of,
      .exp_weights = exp_weights,
      .attend = attend,
      .finish_attention = finish_attention,
  };
}

}  // namespace
}  // namespace nanoweave
