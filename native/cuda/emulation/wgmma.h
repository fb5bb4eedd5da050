// The functions of wgmma.cuh, emulated (async_proxy.h). Each warp does its sixteen rows on its own,
// at its own moment.
#pragma once

#include "cuda/emulation/async_proxy.h"

namespace nanoweave::ptx {

template <int kTiles>
void pin(float (&)[kTiles][4]) {}

inline void begin_products(Where where = Where::current()) { emulation::fence_products(where); }
inline void commit_products(Where where = Where::current()) { emulation::commit_products(where); }
template <int kPending>
void wait_for_products(Where where = Where::current()) {
  emulation::wait_for_products(kPending, where);
}

template <typename T, int kColumns>
void multiply_rows(float (&sums)[kColumns / 8][4], uint64_t a, uint64_t b, bool accumulate,
                   Where where = Where::current()) {
  static_assert(kColumns % 8 == 0 && kColumns <= 256);
  emulation::WarpProduct product{.columns = kColumns,
                                 .accumulate = accumulate,
                                 .is_bf16 = std::is_same_v<T, bf16>,
                                 .sums = {},
                                 .a = {},
                                 .a_descriptor = a,
                                 .b_descriptor = b,
                                 .group = 0};
  emulation::start_product(product, &sums[0][0], nullptr, where);
}

template <typename T, int kColumns>
void multiply_columns(float (&sums)[kColumns / 8][4], const uint32_t (&a)[4], uint64_t b,
                      Where where = Where::current()) {
  static_assert(kColumns % 64 == 0 && kColumns <= 256);
  emulation::WarpProduct product{.columns = kColumns,
                                 .accumulate = true,
                                 .is_bf16 = std::is_same_v<T, bf16>,
                                 .sums = {},
                                 .a = {},
                                 .a_descriptor = 0,
                                 .b_descriptor = b,
                                 .group = 0};
  emulation::start_product(product, &sums[0][0], a, where);
}

}  // namespace nanoweave::ptx
