// What moe_dispatch and moe_combine share on the device: where an expert lives, rows taken by warps
// in pieces, and launching over all ranks of the world.
#pragma once

#include "cuda/comm.cuh"
#include "ops/experts.h"

namespace nanoweave {

struct ExpertMap {
  int32_t experts, per_position, slices, groups, tp, max_tokens;

  __device__ __forceinline__ int first_rank_of(int expert) const {
    return expert / per_position * slices;
  }
  // Local number of `expert` on `rank`, −1: another rank's, or no expert at all.
  __device__ __forceinline__ int local(int expert, int rank) const {
    const int number = expert - rank / slices * per_position;
    const bool is_local = expert >= 0 && expert < experts && number >= 0 && number < per_position;
    return is_local ? number : -1;
  }
};

inline ExpertMap expert_map(const ExpertLayout& layout) {
  return {.experts = static_cast<int32_t>(layout.experts),
          .per_position = static_cast<int32_t>(layout.per_position),
          .slices = layout.slices,
          .groups = layout.groups,
          .tp = layout.tp,
          .max_tokens = static_cast<int32_t>(layout.max_tokens)};
}

// A piece of a row: kVectors 16-byte vectors for each lane of the warp that takes it. Pieces of all
// rows are numbered through, so that few rows keep as many warps busy as many.
template <int kVectors>
struct RowPieces {
  int32_t vectors;  // of a row

  __device__ __forceinline__ int per_row() const {
    constexpr int kPiece = kVectors * kWarpSize;
    return (vectors + kPiece - 1) / kPiece;
  }
  // Vector `i` of this lane; not below `vectors`: past the row's end.
  __device__ __forceinline__ int vector(int piece, int i) const {
    return (piece * kVectors + i) * kWarpSize + lane_index();
  }
};

// Of the warps of a block, each taking pieces: the first and the step, in pieces.
template <int kWarps>
__device__ __forceinline__ int64_t first_piece() {
  return int64_t{blockIdx.x} * kWarps + warp_index();
}
template <int kWarps>
__device__ __forceinline__ int64_t piece_stride() {
  return int64_t{gridDim.x} * kWarps;
}

// ---- Launching ----------------------------------------------------------------------------------

inline void require_reachable_experts(const OpInstance& op, const CudaPlan& plan) {
  const bool reachable =
      plan.peer_access && (plan.world_missing.empty() || op.program.world == op.program.tp);
  op.require(reachable || op.program.world == 1,
             "tokens reach the ranks of their experts by peer access alone, and %s",
             plan.world_missing.empty() ? "the devices cannot map each other's memory"
                                        : plan.world_missing.c_str());
}

// How a collective over all ranks goes: by peers' stores, with blocks for `pieces` of work.
inline LaunchPlan plan_world(const CudaLaunch& launch, int64_t wanted_blocks) {
  const GroupTraits traits{.link = launch.link,
                           .few_blocks = launch.few_blocks,
                           .few = launch.few,
                           .max_local_ranks = launch.max_local_ranks,
                           .sm_budget = launch.sm_budget};
  return {.form = CollectiveForm::kTwoShot,
          .blocks = plan_blocks(CollectiveForm::kTwoShot, wanted_blocks, traits),
          .sharded_from = kNever,
          .refused = nullptr};
}

}  // namespace nanoweave
