// The AMX matmul kernel on emulated tiles: what TDPBF16PS does, in scalar code, so that blocking
// and edges can be verified on any machine. Reads and writes touch exactly the bytes the
// instructions would.
//
// Per pair of bf16 the instruction keeps two float32 chains over the tile's 16 pairs (first and
// second of each pair), adds the two, and adds that to the sum: each rounded to nearest even, with
// subnormal inputs and results taken as zero (Intel SDM, TDPBF16PS).
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "cpu/matmul_amx.h"
#include "driver/matmul_check.h"

namespace nanoweave {
namespace {

float flush(float value) {
  return std::abs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

struct EmulatedTiles {
  struct Tile {
    alignas(64) std::byte rows[kTileRows][kTileRowBytes];
  };
  static thread_local bool configured;
  static thread_local Tile sums[2][2], x[2], w[2];

  static void configure() { configured = true; }
  static void release() { configured = false; }

  static void load(Tile& tile, const void* from, int64_t stride) {
    if (!configured) std::abort();  // the hardware would fault
    for (int64_t row = 0; row < kTileRows; ++row)
      std::memcpy(tile.rows[row], static_cast<const std::byte*>(from) + row * stride,
                  kTileRowBytes);
  }

  template <int kX, int kW>
  static void zero_sum() {
    sums[kX][kW] = {};
  }
  template <int kX, int kW>
  static void load_sum(const float* from, int64_t stride) {
    load(sums[kX][kW], from, stride);
  }
  template <int kX, int kW>
  static void store_sum(float* to, int64_t stride) {
    for (int64_t row = 0; row < kTileRows; ++row)
      std::memcpy(reinterpret_cast<std::byte*>(to) + row * stride, sums[kX][kW].rows[row],
                  kTileRowBytes);
  }
  template <int kX>
  static void load_x(const std::byte* from, int64_t stride) {
    load(x[kX], from, stride);
  }
  template <int kW>
  static void load_w(const std::byte* from, int64_t stride) {
    load(w[kW], from, stride);
  }

  template <int kX, int kW>
  static void dot() {
    for (int row = 0; row < kTileRows; ++row) {
      float chains[kPanelWidth][2] = {};
      bf16 x_row[2 * kTileGroups];
      std::memcpy(x_row, x[kX].rows[row], kTileRowBytes);
      for (int group = 0; group < kTileGroups; ++group) {
        bf16 w_row[2 * kPanelWidth];
        std::memcpy(w_row, w[kW].rows[group], kTileRowBytes);
        for (int lane = 0; lane < kPanelWidth; ++lane)
          for (int half = 0; half < 2; ++half)
            chains[lane][half] =
                flush(std::fma(flush(to_float(x_row[group * 2 + half])),
                               flush(to_float(w_row[lane * 2 + half])), chains[lane][half]));
      }
      float sum[kPanelWidth];
      std::memcpy(sum, sums[kX][kW].rows[row], kTileRowBytes);
      for (int lane = 0; lane < kPanelWidth; ++lane)
        sum[lane] = flush(flush(sum[lane]) + flush(chains[lane][0] + chains[lane][1]));
      std::memcpy(sums[kX][kW].rows[row], sum, kTileRowBytes);
    }
  }
};

thread_local bool EmulatedTiles::configured = false;
thread_local EmulatedTiles::Tile EmulatedTiles::sums[2][2], EmulatedTiles::x[2],
    EmulatedTiles::w[2];

}  // namespace

const MatmulKernel& emulated_amx_kernel() {
  static const MatmulKernel kernel =
      make_amx_kernel<EmulatedTiles>("amx-bf16 (emulated)", portable_kernel(DType::kBf16)->finish);
  return kernel;
}

}  // namespace nanoweave
