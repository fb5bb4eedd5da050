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

// Matmuls that overlap with a collective work in groups of rows ("wave groups"): one is moved while
// later ones are multiplied. Groups end at whole tiles where there are enough rows, and a rank owns
// its share of every group, so that no rank waits for the last one to have something to do.
inline constexpr int kMaxRowGroups = 8;
inline constexpr int64_t kGroupTile = 128;  // rows

NANOWEAVE_HD RowSpan group_rows(int64_t count, int groups, int group) {
  const int64_t unit = count >= groups * kGroupTile ? kGroupTile : 1;
  const RowSpan units = owned_rows((count + unit - 1) / unit, groups, group);
  const int64_t end = units.end * unit;
  return {units.begin * unit, end < count ? end : count};
}

// Rows of a group that `rank` of `world` owns. One group: as owned_rows().
NANOWEAVE_HD RowSpan owned_group_rows(int64_t count, int groups, int group, int world, int rank) {
  const RowSpan rows = group_rows(count, groups, group);
  const RowSpan own = owned_rows(rows.end - rows.begin, world, rank);
  return {rows.begin + own.begin, rows.begin + own.end};
}

// Whether `rank` owns a row of `count` that come in `groups`.
NANOWEAVE_HD bool owns_row(int64_t count, int groups, int world, int rank, int64_t row) {
  for (int group = 0; group < groups; ++group) {
    const RowSpan own = owned_group_rows(count, groups, group, world, rank);
    if (row >= own.begin && row < own.end) return true;
  }
  return false;
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
