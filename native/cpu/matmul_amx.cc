// Matmul kernel for AMX-BF16: the tile policy with the real instructions.
//
// This policy compiles but has not been run on hardware that has AMX. Its blocking and edges
// (matmul_amx.h) are verified by nanoweave_matmul_check with a policy that emulates the tiles.
#include "cpu/matmul_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,amx-tile,amx-bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,amx-tile,amx-bf16")
#endif

#include "cpu/matmul_amx.h"
#include "cpu/matmul_avx512.h"
#include "cpu/matmul_sweep.h"

namespace nanoweave {
namespace {

// Tiles 0 … 3 sums, 4 and 5 x, 6 and 7 W. Tile numbers are part of the instructions, so each is
// spelled out.
struct HardwareTiles {
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof(config) == 64);
    _tile_loadconfig(&config);
  }
  static void release() { _tile_release(); }

  template <int kX, int kW>
  static void zero_sum() {
    if constexpr (kX == 0 && kW == 0) _tile_zero(0);
    if constexpr (kX == 0 && kW == 1) _tile_zero(1);
    if constexpr (kX == 1 && kW == 0) _tile_zero(2);
    if constexpr (kX == 1 && kW == 1) _tile_zero(3);
  }
  template <int kX, int kW>
  static void load_sum(const float* from, int64_t stride) {
    if constexpr (kX == 0 && kW == 0) _tile_loadd(0, from, stride);
    if constexpr (kX == 0 && kW == 1) _tile_loadd(1, from, stride);
    if constexpr (kX == 1 && kW == 0) _tile_loadd(2, from, stride);
    if constexpr (kX == 1 && kW == 1) _tile_loadd(3, from, stride);
  }
  template <int kX, int kW>
  static void store_sum(float* to, int64_t stride) {
    if constexpr (kX == 0 && kW == 0) _tile_stored(0, to, stride);
    if constexpr (kX == 0 && kW == 1) _tile_stored(1, to, stride);
    if constexpr (kX == 1 && kW == 0) _tile_stored(2, to, stride);
    if constexpr (kX == 1 && kW == 1) _tile_stored(3, to, stride);
  }
  template <int kX>
  static void load_x(const std::byte* from, int64_t stride) {
    if constexpr (kX == 0) _tile_loadd(4, from, stride);
    if constexpr (kX == 1) _tile_loadd(5, from, stride);
  }
  template <int kW>
  static void load_w(const std::byte* from, int64_t stride) {
    if constexpr (kW == 0) _tile_loadd(6, from, stride);
    if constexpr (kW == 1) _tile_loadd(7, from, stride);
  }
  template <int kX, int kW>
  static void dot() {
    if constexpr (kX == 0 && kW == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kX == 0 && kW == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kX == 1 && kW == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kX == 1 && kW == 1) _tile_dpbf16ps(3, 5, 7);
  }
};

constexpr MatmulKernel kAmx = make_amx_kernel<HardwareTiles>("amx-bf16", finish_rows<Avx512>);

}  // namespace

const MatmulKernel* amx_kernel() { return &kAmx; }

}  // namespace nanoweave

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace nanoweave {
const MatmulKernel* amx_kernel() { return nullptr; }
}  // namespace nanoweave
#endif
