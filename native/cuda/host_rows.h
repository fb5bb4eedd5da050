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

// Rows of `buffer` that an op of this part works on.
inline int32_t which_rows(const BufferDesc& buffer, int part) {
  if (buffer.row_symbol() == Symbol::kRows) return kLogitsRows;
  return part < 0 ? kAllTokens : part;
}

inline int64_t most_rows(const CudaBucket& bucket, int32_t which) {
  if (which == kLogitsRows) return bucket.rows;
  return which == kAllTokens ? bucket.tokens : bucket.part_tokens;
}

struct HostRows {
  int64_t begin;
  int64_t count;
};

// Whether host_rows() may be asked for.
inline bool host_knows_rows(const CudaLaunch& launch, int32_t which) {
  return which >= kAllTokens || !launch.counts.empty();
}

inline HostRows host_rows(const CudaLaunch& launch, size_t local, int32_t which) {
  if (launch.counts.empty()) {
    CHECK(which >= kAllTokens);
    return {0, most_rows(launch.bucket, which)};
  }
  const StepCounts& counts = launch.counts[local];
  if (which == kLogitsRows) return {0, counts.num_rows};
  if (which == kAllTokens) return {0, counts.num_tokens};
  return {counts.part_bounds[which], counts.part_bounds[which + 1] - counts.part_bounds[which]};
}

}  // namespace nanoweave
