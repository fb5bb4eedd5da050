// The collectives as NCCL calls, over the rows that the host knows: those of this step, or all rows
// of the bucket, where rows past the step's own are moved too and never looked at.
#pragma once

#include <bitset>

#include "cuda/nccl.h"

namespace nanoweave {

// A buffer of rows in the arena, by local rank.
struct NcclRows {
  std::array<std::byte*, kMaxRanks> data;  // row 0 of the whole buffer
  int64_t cols;
  DType dtype;

  int64_t row_bytes() const { return cols * dtype_bytes(dtype); }
};

// Which local ranks' groups divide their rows among them, by owned_rows(); needs launch.counts.
using NcclSharing = std::bitset<kMaxRanks>;

// y = Σ x; x and y of one shape. A rank whose group divides the rows gets those it owns.
void nccl_sum(const CudaLaunch& launch, int32_t which, const NcclSharing& shared, const NcclRows& x,
              const NcclRows& y);
// In groups that divide the rows, those of y that a rank owns go to all.
void nccl_gather_rows(const CudaLaunch& launch, int32_t which, const NcclSharing& shared,
                      const NcclRows& y);
// x of all ranks, one after the other, each [rows, cols], to `gathered` of every local rank.
void nccl_all_gather(const CudaLaunch& launch, int32_t which, const NcclRows& x,
                     const std::array<std::byte*, kMaxRanks>& gathered);

}  // namespace nanoweave
