// The rows an op works on: which they are, settled at load, and what the host knows of them at a
// launch. Libraries take sizes as arguments, so they get those of this step where the launch brings
// its counts, else all rows of the bucket. Rows past the step's own belong to the same buffers and
// are never looked at: computing or moving them does no harm. A part's rows are followed by those
// of another part, so a part needs counts.
#pragma once

#include "cuda/op.h"

namespace nanoweave {

// Which rows: token rows of part 0..kMaxParts−1, all token rows, or logits rows.
inline constexpr int32_t kAllTokens = kMaxParts;
inline constexpr int32_t kLogitsRows = kMaxParts + 1;

// One row group (comm/protocol.h) of the rows: the number of groups and the group above the
// lowest byte.
inline int32_t group_of_rows(int32_t which, int groups, int group) {
  return which | group << 8 | groups << 16;
}
NANOWEAVE_HD int32_t ungrouped(int32_t which) { return which & 0xff; }
NANOWEAVE_HD int32_t num_groups(int32_t which) { return which >> 16; }  // 0: all rows

// The group's rows of rows [begin, begin + count).
template <typename Rows>
NANOWEAVE_HD Rows take_group(int32_t which, Rows rows) {
  const int32_t groups = num_groups(which);
  if (groups == 0) return rows;
  const RowSpan group = group_rows(rows.count, groups, which >> 8 & 0xff);
  using Count = decltype(rows.count);
  return {static_cast<Count>(rows.begin + group.begin),
          static_cast<Count>(group.end - group.begin)};
}

// Rows of `buffer` that an op of this part works on.
inline int32_t which_rows(const BufferDesc& buffer, int part) {
  if (buffer.row_symbol() == Symbol::kRows) return kLogitsRows;
  return part < 0 ? kAllTokens : part;
}

inline int64_t most_rows(const CudaBucket& bucket, int32_t which) {
  const int32_t base = ungrouped(which);
  const int64_t rows = base == kLogitsRows  ? bucket.rows
                       : base == kAllTokens ? bucket.tokens
                                            : bucket.part_tokens;
  const int64_t groups = num_groups(which);
  if (groups == 0) return rows;
  if (rows < groups * kGroupTile) return (rows + groups - 1) / groups;
  const int64_t tiles = (rows + kGroupTile - 1) / kGroupTile;
  return (tiles + groups - 1) / groups * kGroupTile;
}

struct HostRows {
  int64_t begin;
  int64_t count;
};

// Whether host_rows() may be asked for. A group of a bucket's rows is another one than that of the
// step's.
inline bool host_knows_rows(const CudaLaunch& launch, int32_t which) {
  return (num_groups(which) == 0 && which >= kAllTokens) || !launch.counts.empty();
}

inline HostRows host_rows(const CudaLaunch& launch, size_t local, int32_t which) {
  if (launch.counts.empty()) {
    CHECK(host_knows_rows(launch, which));
    return {0, most_rows(launch.bucket, which)};
  }
  const StepCounts& counts = launch.counts[local];
  const int32_t base = ungrouped(which);
  if (base == kLogitsRows) return take_group(which, HostRows{0, counts.num_rows});
  if (base == kAllTokens) return take_group(which, HostRows{0, counts.num_tokens});
  const int32_t begin = counts.part_bounds[base];
  return take_group(which, HostRows{begin, counts.part_bounds[base + 1] - begin});
}

}  // namespace nanoweave
