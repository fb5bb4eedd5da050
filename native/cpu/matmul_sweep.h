// The register-blocked sweep and the epilogue, as templates over `Math`, one instruction set
// working on one kind of weights:
//
//   Vec, kLanes               a float vector; 16 / kLanes of them make a panel
//   Weight, weight(…)         vector j of a panel's group, for one step
//   broadcast(x)              one value of x (a bf16 pair for dot products) in every lane
//   multiply_add(w, x, sum), zero, load, store
//   kGroupBytes, kSteps       bytes of one group of one panel; multiply-adds it takes
//   kOperandBytes             bytes of x a step takes
//   kMaxRows, panels_for(rows)  block sizes whose rows · panels sums fit the register file
//   kReadAheadRows            see sweep_block
//   store_bf16, store_f16     one panel's 16 floats, rounded
//
// Included once by each matmul_<isa>.cc, under that file's target pragma and after every other
// header. All of it is in an unnamed namespace and no inline function of the standard library is
// called: files must not share code compiled for different targets.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/matmul_kernel.h"

namespace nanoweave {
namespace {

// Into the second-level cache: the first is too small to hold what is needed so much later.
inline void prefetch(const std::byte* address) { __builtin_prefetch(address, 0, 2); }

constexpr int kAheadBytes = 1024;  // measured: 512 to 2048 are alike, 4096 is worse

// One block. With few rows memory is what costs, and the hardware's prefetch does most of it: each
// panel is fetched a little ahead. From kReadAheadRows on, `ahead` runs over as many bytes as the
// block reads: the next block's panels, or its own where there is nothing to fetch. The block's
// multiply-adds then hide the next block's whole way from memory, whatever its latency.
template <class Math, int kRows, int kPanels>
void sweep_block(const Sweep& s, const std::byte* w, const std::byte* ahead, float* sums) {
  constexpr int kVecs = kPanelWidth / Math::kLanes;
  constexpr int kSums = kPanels * kVecs;
  typename Math::Vec sum[kRows][kSums];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j)
      sum[row][j] =
          s.resume ? Math::load(sums + row * s.sums_stride + j * Math::kLanes) : Math::zero();

  const std::byte* x = s.x;
  for (int64_t group = 0; group < s.groups; ++group) {
#pragma GCC unroll 2
    for (int step = 0; step < Math::kSteps; ++step) {
      typename Math::Weight weight[kSums];
#pragma GCC unroll 16
      for (int j = 0; j < kSums; ++j)
        weight[j] = Math::weight(w + j / kVecs * s.panel_stride, step, j % kVecs);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const auto value = Math::broadcast(x + row * s.x_stride);
#pragma GCC unroll 16
        for (int j = 0; j < kSums; ++j)
          sum[row][j] = Math::multiply_add(weight[j], value, sum[row][j]);
      }
      x += Math::kOperandBytes;
    }
    w += Math::kGroupBytes;
    // Prefetches never fault; those past the last panel are wasted, not wrong.
    if constexpr (kRows >= Math::kReadAheadRows) {
      constexpr int kBytes = kPanels * Math::kGroupBytes;
#pragma GCC unroll 16
      for (int offset = 0; offset < kBytes; offset += 64) prefetch(ahead + offset);
      ahead += kBytes;
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < kPanels; ++j) prefetch(w + j * s.panel_stride + kAheadBytes);
    }
  }

#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j)
      Math::store(sums + row * s.sums_stride + j * Math::kLanes, sum[row][j]);
}

// The last `left` ≤ kPanels panels.
template <class Math, int kRows, int kPanels>
void sweep_rest(const Sweep& s, const std::byte* w, float* sums, int left) {
  if constexpr (kPanels > 0) {
    if (left == kPanels)
      sweep_block<Math, kRows, kPanels>(s, w, w, sums);
    else
      sweep_rest<Math, kRows, kPanels - 1>(s, w, sums, left);
  }
}

// All panels, kPanels at a time.
template <class Math, int kRows, int kPanels>
void sweep_panels(const Sweep& s) {
  const std::byte* w = s.w;
  float* sums = s.sums;
  int left = s.panels;
  for (; left >= kPanels; left -= kPanels) {
    const std::byte* next = w + kPanels * s.panel_stride;
    const bool whole_next = s.whole_panels && left >= 2 * kPanels;
    sweep_block<Math, kRows, kPanels>(s, w, whole_next ? next : w, sums);
    w = next;
    sums += kPanels * kPanelWidth;
  }
  sweep_rest<Math, kRows, kPanels - 1>(s, w, sums, left);
}

template <class Math, int kRows>
void sweep_rows(const Sweep& s) {
  if constexpr (kRows > 1) {
    if (s.rows < kRows) return sweep_rows<Math, kRows - 1>(s);
  }
  // Panels that are read only once come from memory fastest one after the other.
  if (kRows >= Math::kReadAheadRows && s.read_once) return sweep_panels<Math, kRows, 1>(s);
  sweep_panels<Math, kRows, Math::panels_for(kRows)>(s);
}

// tanh to 3 units in the last place. |x| < 0.35: odd Taylor polynomial. Else (1 - t) / (1 + t) with
// t = exp(-2|x|) = 2^n · exp(r), |r| ≤ ln 2 / 2. Branch-free, so that loops over lanes vectorise.
template <class Math>
float tanh_lane(float x) {
  const float magnitude = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) & 0x7fffffffu);
  const float square = x * x;
  float odd = -1382.0f / 155925.0f;
  odd = odd * square + 62.0f / 2835.0f;
  odd = odd * square - 17.0f / 315.0f;
  odd = odd * square + 2.0f / 15.0f;
  odd = odd * square - 1.0f / 3.0f;
  const float small = x + x * square * odd;

  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float argument = -2.0f * (magnitude > 20.0f ? 20.0f : magnitude);  // NaN stays NaN
  const float shifted = argument * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (argument - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float e = 1.0f / 5040.0f;
  e = e * r + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r * r + r + 1.0f;
  const uint32_t exponent = __builtin_bit_cast(uint32_t, shifted) << 23;
  const float t = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, e) + exponent);
  const float large = (1.0f - t) / (1.0f + t);
  return magnitude < 0.35f ? small : x < 0 ? -large : large;
}

// One panel of one row: 16 sums to `lanes` elements of y.
template <class Math>
void finish_panel(const Finish& f, const float* sums, const float* bias, int lanes, std::byte* y) {
  alignas(64) float values[kPanelWidth];
  std::memcpy(values, sums, sizeof(values));
  if (bias != nullptr) {
    alignas(64) float addend[kPanelWidth] = {};
    std::memcpy(addend, bias, static_cast<size_t>(lanes) * sizeof(float));
    for (int lane = 0; lane < kPanelWidth; ++lane) values[lane] += addend[lane];
  }
  if (f.softcap > 0) {
    for (int lane = 0; lane < kPanelWidth; ++lane)
      values[lane] = f.softcap * tanh_lane<Math>(values[lane] / f.softcap);
  }
  alignas(64) std::byte rounded[kPanelWidth * sizeof(float)];
  std::byte* out = lanes == kPanelWidth ? y : rounded;
  switch (f.y_dtype) {
    case DType::kBf16:
      Math::store_bf16(values, out);
      break;
    case DType::kF16:
      Math::store_f16(values, out);
      break;
    default:
      std::memcpy(out, values, sizeof(values));
  }
  if (out != y)
    std::memcpy(y, rounded,
                static_cast<size_t>(lanes) * static_cast<size_t>(dtype_bytes(f.y_dtype)));
}

template <class Math>
void finish_rows(const Finish& f) {
  const int64_t panel_bytes = kPanelWidth * dtype_bytes(f.y_dtype);
  for (int row = 0; row < f.rows; ++row) {
    const float* sums = f.sums + row * f.sums_stride;
    const float* bias = f.bias;
    std::byte* y = f.y + row * f.y_stride;
    int64_t left = f.columns;
    for (; left >= kPanelWidth; left -= kPanelWidth) {
      finish_panel<Math>(f, sums, bias, kPanelWidth, y);
      sums += kPanelWidth;
      if (bias != nullptr) bias += kPanelWidth;
      y += panel_bytes;
    }
    if (left > 0) finish_panel<Math>(f, sums, bias, static_cast<int>(left), y);
  }
}

template <class Math>
constexpr MatmulKernel make_kernel(const char* name, DType operand) {
  return {.name = name,
          .operand = operand,
          .max_rows = Math::kMaxRows,
          .row_multiple = 1,
          .k_multiple = Math::kOperandBytes * Math::kSteps / dtype_bytes(operand),
          .panels_for = Math::panels_for,
          .sweep = sweep_rows<Math, Math::kMaxRows>,
          .finish = finish_rows<Math>,
          .enter = nullptr,
          .leave = nullptr};
}

}  // namespace
}  // namespace nanoweave
