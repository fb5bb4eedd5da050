// The AMX matmul kernel over a tile policy: blocking and edges here, instructions there.
//
// A tile is 16 rows of 64 bytes. A block is up to 2 tiles of x rows (16 · 32 bf16 each) by up to 2
// panels; a panel's 16 groups are one tile of W as they lie in memory. Four tiles hold the sums:
//
//   sum tile (i, j) += x tile i · W tile j
//
// `Tiles` has configure(), release(), and for tile numbers i, j in {0, 1}: zero_sum<i, j>(),
// load_sum<i, j>(from, stride), store_sum<i, j>(to, stride), load_x<i>(from, stride),
// load_w<j>(from, stride), dot<i, j>(). Strides are bytes between the rows of a tile.
//
// A row's bits depend on x, W and K alone: an instruction sums 32 k in a fixed order whatever else
// the tile holds, and k is only cut at multiples of 32. They differ from AVX512-BF16's.
//
// Included under the including file's target pragma, in an unnamed namespace, for the reason given
// in matmul_sweep.h.
#pragma once

#include <cstring>

#include "cpu/matmul_kernel.h"

namespace nanoweave {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
constexpr int kTileGroups = 16;  // of W: 32 k
constexpr int kTileBytes = kTileRows * kTileRowBytes;

// One step of 32 k.
template <class Tiles, int kXTiles, int kWTiles>
void amx_step(const std::byte* x, int64_t x_stride, const std::byte* w, int64_t panel_stride) {
  Tiles::template load_x<0>(x, x_stride);
  if constexpr (kXTiles > 1) Tiles::template load_x<1>(x + kTileRows * x_stride, x_stride);
  Tiles::template load_w<0>(w, kTileRowBytes);
  if constexpr (kWTiles > 1) Tiles::template load_w<1>(w + panel_stride, kTileRowBytes);
  Tiles::template dot<0, 0>();
  if constexpr (kWTiles > 1) Tiles::template dot<0, 1>();
  if constexpr (kXTiles > 1) Tiles::template dot<1, 0>();
  if constexpr (kXTiles > 1 && kWTiles > 1) Tiles::template dot<1, 1>();
}

template <class Tiles, int kX, int kW>
void amx_begin(const float* sum, int64_t stride, bool resume) {
  if (resume)
    Tiles::template load_sum<kX, kW>(sum, stride);
  else
    Tiles::template zero_sum<kX, kW>();
}

template <class Tiles, int kXTiles, int kWTiles>
void amx_block(const Sweep& s, const std::byte* w, float* sums) {
  const int64_t stride = s.sums_stride * int64_t{sizeof(float)};
  float* lower = sums + kTileRows * s.sums_stride;
  amx_begin<Tiles, 0, 0>(sums, stride, s.resume);
  if constexpr (kWTiles > 1) amx_begin<Tiles, 0, 1>(sums + kPanelWidth, stride, s.resume);
  if constexpr (kXTiles > 1) amx_begin<Tiles, 1, 0>(lower, stride, s.resume);
  if constexpr (kXTiles > 1 && kWTiles > 1)
    amx_begin<Tiles, 1, 1>(lower + kPanelWidth, stride, s.resume);

  const std::byte* x = s.x;
  const int64_t steps = s.groups / kTileGroups;
  for (int64_t step = 0; step < steps; ++step) {
    amx_step<Tiles, kXTiles, kWTiles>(x, s.x_stride, w, s.panel_stride);
    x += kTileRowBytes;
    w += kTileBytes;
  }
  // The last groups of the panels: a whole tile would reach into the next panel, so they are copied
  // over zeros. x has zeros there already.
  const auto rest = static_cast<size_t>(s.groups % kTileGroups) * kTileRowBytes;
  if (rest > 0) {
    alignas(64) std::byte padded[kWTiles][kTileBytes] = {};
    for (int panel = 0; panel < kWTiles; ++panel)
      std::memcpy(padded[panel], w + panel * s.panel_stride, rest);
    amx_step<Tiles, kXTiles, kWTiles>(x, s.x_stride, padded[0], kTileBytes);
  }

  Tiles::template store_sum<0, 0>(sums, stride);
  if constexpr (kWTiles > 1) Tiles::template store_sum<0, 1>(sums + kPanelWidth, stride);
  if constexpr (kXTiles > 1) Tiles::template store_sum<1, 0>(lower, stride);
  if constexpr (kXTiles > 1 && kWTiles > 1)
    Tiles::template store_sum<1, 1>(lower + kPanelWidth, stride);
}

template <class Tiles, int kXTiles>
void amx_panels(const Sweep& s) {
  const std::byte* w = s.w;
  float* sums = s.sums;
  int left = s.panels;
  for (; left >= 2; left -= 2) {
    amx_block<Tiles, kXTiles, 2>(s, w, sums);
    w += 2 * s.panel_stride;
    sums += 2 * kPanelWidth;
  }
  if (left > 0) amx_block<Tiles, kXTiles, 1>(s, w, sums);
}

template <class Tiles>
void amx_sweep(const Sweep& s) {
  if (s.rows > kTileRows)
    amx_panels<Tiles, 2>(s);
  else
    amx_panels<Tiles, 1>(s);
}

constexpr int amx_panels_for(int) { return 2; }

template <class Tiles>
constexpr MatmulKernel make_amx_kernel(const char* name, void (*finish)(const Finish&)) {
  return {.name = name,
          .operand = DType::kBf16,
          .max_rows = 2 * kTileRows,
          .row_multiple = kTileRows,
          .k_multiple = 2 * kTileGroups,
          .panels_for = amx_panels_for,
          .sweep = amx_sweep<Tiles>,
          .finish = finish,
          .enter = Tiles::configure,
          .leave = Tiles::release};
}

}  // namespace
}  // namespace nanoweave
