// Matmul kernel for AMX-BF16: the tile policy with the real instructions. Its blocking and edges
// (matmul_amx.h) are also verified by nanoweave_matmul_check with a policy that emulates the tiles,
// on machines that have none.
#include "cpu/matmul_kernel.h"

#if defined(__x86_64__)
#include <cstdint>

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

// Tiles 0 … 3 sums, 4 and 5 x, 6 and 7 W. Written in assembly because the intrinsics of GCC 12 do
// not tell the compiler which memory they read: it drops the stores in front of them.
struct HardwareTiles {
  static void configure() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);
    static constexpr Config kConfig;
    asm volatile("ldtilecfg %0" ::"m"(kConfig));
  }
  static void release() { asm volatile("tilerelease"); }

  template <int kX, int kW>
  static void zero_sum() {
    asm volatile("tilezero %%tmm%c0" ::"i"(2 * kX + kW));
  }
  template <int kX, int kW>
  static void load_sum(const float* from, int64_t stride) {
    load<2 * kX + kW>(from, stride);
  }
  template <int kX, int kW>
  static void store_sum(float* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(2 * kX + kW), "r"(to), "r"(stride)
                 : "memory");
  }
  template <int kX>
  static void load_x(const std::byte* from, int64_t stride) {
    load<4 + kX>(from, stride);
  }
  template <int kW>
  static void load_w(const std::byte* from, int64_t stride) {
    load<6 + kW>(from, stride);
  }
  template <int kX, int kW>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(2 * kX + kW), "i"(4 + kX),
                 "i"(6 + kW));
  }

 private:
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
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
