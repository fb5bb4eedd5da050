// What the ops of routed experts share: how experts and rows are spread over ranks, and the checks
// of buffers with a fixed number of rows. Kernels.md §4; docs/ops.md has the layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/op.h"

namespace nanoweave {

inline constexpr int64_t kMaxExperts = 1024;
inline constexpr int64_t kMaxChoices = 32;
inline constexpr int64_t kExpertRowMultiple = 16;  // rows of an expert's weights: whole panels

// Experts [position · per_position, …) belong to the `slices` ranks from position · slices on; each
// of them computes a slice of the intermediate width.
struct ExpertLayout {
  int64_t experts = 0;
  int64_t per_position = 0;
  int slices = 1;
  int groups = 1;          // attention groups
  int tp = 1;              // ranks of a group
  int64_t max_tokens = 0;  // of a group: rows of a region

  int position_of_rank(int rank) const { return rank / slices; }
  int first_rank_of(int64_t expert) const {
    return static_cast<int>(expert / per_position) * slices;
  }
  // Local number of `expert` on `rank`, −1: another rank's, or no expert at all.
  int64_t local(int64_t expert, int rank) const {
    if (expert < 0 || expert >= experts) return -1;
    return expert / per_position == position_of_rank(rank) ? expert % per_position : -1;
  }
  int64_t received_rows() const { return groups * max_tokens; }
};

// From the attributes `experts` and `ep`.
ExpertLayout expert_layout(const OpInstance& op);

// [rows, cols] of fixed size in the arena.
void require_fixed(const OpInstance& op, const BufferDesc& buffer, int64_t rows, int64_t cols,
                   DType dtype);
// [n + 1] i32 offsets of n local experts; returns n.
int64_t require_offsets(const OpInstance& op, const BufferDesc& buffer);
// [T, k] of `dtype`; returns k.
int64_t require_choices(const OpInstance& op, const BufferDesc& buffer, DType dtype);

inline const int32_t* ints(const Tensor& tensor) {
  return reinterpret_cast<const int32_t*>(tensor.data);
}
inline int32_t* mutable_ints(const Tensor& tensor) {
  return reinterpret_cast<int32_t*>(tensor.data);
}

// Offsets of the local experts' rows. The arena is not trusted: ERR_PROGRAM unless they ascend
// within `rows`. Rank thread, not its pool.
const int32_t* checked_offsets(const HostRun& run, const Tensor& offsets, int64_t rows);

// A barrier over all ranks: tokens cross attention groups.
inline void world_barrier(const HostRun& run, int phase) {
  run.rank.comm->barrier(run.rank.rank, 0, run.rank.world, phase, run.label, run.step_id);
}

}  // namespace nanoweave
