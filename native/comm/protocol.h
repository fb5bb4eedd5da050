// The arithmetic of multi-rank protocols, written once for host and device: epochs, row
// ownership, and who keeps a residual. Pure functions; every rank computes
// the same answers from the same step.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define NANOWEAVE_HD __host__ __device__ inline
#else
#define NANOWEAVE_HD inline
#endif

namespace nanoweave {

// Epochs are monotonic u32 words that wrap; `got` has reached `want` when it is not behind it.
NANOWEAVE_HD bool epoch_reached(uint32_t got, uint32_t want) {
  return static_cast<int32_t>(got - want) >= 0;
}

struct RowSpan {
  int64_t begin;
  int64_t end;
};

// Rows of `count` that `rank` of `world` owns: contiguous, sizes differ by at most one.
NANOWEAVE_HD RowSpan owned_rows(int64_t count, int world, int rank) {
  return {count * rank / world, count * (rank + 1) / world};
}

// Residual rows are sharded from 8 rows per rank on (kernels.md §2). Only a function of what
// all ranks know, and constant over a step, so the residual of a row stays where it is.
inline constexpr int64_t kNever = INT64_MAX;
NANOWEAVE_HD constexpr int64_t residual_sharded_from(int world) {
  return world > 1 ? int64_t{8} * world : kNever;
}
NANOWEAVE_HD bool residual_is_sharded(int64_t rows, int world) {
  return rows >= residual_sharded_from(world);
}

}  // namespace nanoweave
