// Rows sorted by expert, as moe_dispatch leaves them: how many there are stands in device memory,
// so grids cover what the bucket can bring and kernels read the rest from `offsets`.
#pragma once

#include "cuda/rows.cuh"
#include "ops/experts.h"

namespace nanoweave {

struct GroupedRows {
  const int32_t* offsets;  // [experts + 1]
  int32_t experts;
  int32_t buffer_rows;

  // The arena is not trusted: offsets stay within the buffer, and an expert's rows do not end
  // before they begin.
  __device__ __forceinline__ int offset(int expert) const {
    return min(max(offsets[expert], 0), buffer_rows);
  }
  __device__ __forceinline__ RowRange of_expert(int expert) const {
    const int begin = offset(expert);
    return {begin, max(offset(expert + 1) - begin, 0)};
  }
};

// What is known of them at load.
struct GroupedSize {
  int32_t experts;
  int64_t buffer_rows;
  int64_t max_tokens;  // of a group: the buffers are for that many
  int64_t groups;

  // Rows that a step of the bucket can bring: all choices of all its tokens.
  int64_t most_rows(const CudaBucket& bucket) const {
    const int64_t per_token = (buffer_rows + max_tokens - 1) / max_tokens;
    return std::min(buffer_rows, per_token * bucket.tokens);
  }
  // Of one expert, as long as a token does not choose it twice.
  int64_t most_of_expert(const CudaBucket& bucket) const {
    return std::min(buffer_rows, groups * bucket.tokens);
  }
  GroupedRows rows(const std::byte* offsets) const {
    return {reinterpret_cast<const int32_t*>(offsets), experts, static_cast<int32_t>(buffer_rows)};
  }
};

// Of an op whose input 0 are the rows and input 1 the offsets.
inline GroupedSize grouped_size(const OpInstance& op) {
  const Program& program = op.program;
  op.require(op.input(0)->max_rows() <= INT32_MAX, "too many rows for int32 offsets");
  return {.experts = static_cast<int32_t>(require_offsets(op, *op.input(1))),
          .buffer_rows = op.input(0)->max_rows(),
          .max_tokens = std::max<int64_t>(1, program.limits.max_tokens),
          .groups = program.world / program.tp};
}

}  // namespace nanoweave
