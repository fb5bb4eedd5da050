// The sum over an attention group that all reducing collectives share: float32, in rank order, so
// that every form, split and nano-batch gives a row the same bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "cpu/vector_kernels.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

inline constexpr int kMaxGroupRanks = 64;

// `y` can hold the sums over the group of `partial`: alike, or f32.
inline void require_sum(const OpInstance& op, const BufferDesc& partial, const BufferDesc& y) {
  op.require(partial.name != y.name, "partial and y must differ");
  op.require_activation(partial, -1);
  op.require_activation(y, partial.cols());
  op.require(y.dtype == DType::kF32 || y.dtype == partial.dtype,
             "buffer %s is %s, sums are f32 or what buffer %s is", y.name.c_str(),
             dtype_name(y.dtype), partial.name.c_str());
  op.require(op.program.tp <= kMaxGroupRanks, "groups have at most %d ranks", kMaxGroupRanks);
}

class GroupSum {
 public:
  GroupSum(const HostRun& run, const Tensor& partial)
      : kernels_(vector_kernels(run.rank.isa)), partial_(partial), world_(run.rank.tp) {
    for (int peer = 0; peer < world_; ++peer)
      sources_[peer] = run.at_peer(partial, run.rank.tp_first() + peer).data;
  }

  // out = Σ over ranks of partial[row]
  void row(int64_t row, float* out) const {
    const int64_t offset = row * partial_.row_bytes();
    kernels_.load(partial_.dtype, sources_[0] + offset, partial_.cols, out);
    for (int peer = 1; peer < world_; ++peer)
      kernels_.accumulate(partial_.dtype, sources_[peer] + offset, partial_.cols, out);
  }

 private:
  const VectorKernels& kernels_;
  const Tensor partial_;
  const int world_;
  std::array<const std::byte*, kMaxGroupRanks> sources_;
};

// Stores `values` as row `row` of y: here, or (to_all) on every rank of the group.
inline void store_row(const HostRun& run, const VectorKernels& kernels, const float* values,
                      const Tensor& y, int64_t row, bool to_all) {
  std::byte* own = y.row(row);
  kernels.store(y.dtype, values, y.cols, own);
  if (!to_all) return;
  for (int peer = run.rank.tp_first(); peer < run.rank.tp_first() + run.rank.tp; ++peer)
    if (peer != run.rank.rank)
      std::memcpy(run.at_peer(y, peer).row(row), own, static_cast<size_t>(y.row_bytes()));
}

// Rows `rows` of y = their sums over the group, stored here or (to_all) on every rank of it.
inline void sum_rows(const HostRun& run, const Tensor& partial, const Tensor& y, RowSpan rows,
                     bool to_all) {
  const HostRank& rank = run.rank;
  const VectorKernels& kernels = vector_kernels(rank.isa);
  const ThreadFloats scratch(rank, partial.cols);
  const GroupSum sum(run, partial);
  for_row_chunks(rank, rows.end - rows.begin, partial.cols * rank.tp,
                 [&](int64_t begin, int64_t end, int thread) {
                   float* total = scratch.of(thread);
                   for (int64_t r = rows.begin + begin; r < rows.begin + end; ++r) {
                     sum.row(r, total);
                     store_row(run, kernels, total, y, r, to_all);
                   }
                 });
}

}  // namespace nanoweave
