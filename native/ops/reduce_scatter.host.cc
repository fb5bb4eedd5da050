// reduce_scatter: y[row] = Σ over the group of x[row] for the rows this rank owns, [T, H], in rank
// order, one rounding; other rows of y are left as they are.
#include "ops/op.h"
#include "ops/reduce.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_reduce_scatter(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols());
  op.require_alike(x, y);
  op.require_same_part();
  op.require_distinct(0, 0);
  op.require(op.program.tp <= kMaxGroupRanks, "groups have at most %d ranks", kMaxGroupRanks);

  op.collective_form();

  return [](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    if (x.rows == 0) return;
    const HostRank& rank = run.rank;
    const VectorKernels& kernels = vector_kernels(rank.isa);
    const RowSpan rows = owned_rows(x.rows, rank.tp, rank.tp_rank());
    const ThreadFloats scratch(rank, x.cols);
    run.group_barrier(0);
    const GroupSum sum(run, x);
    for_row_chunks(rank, rows.end - rows.begin, x.cols * rank.tp,
                   [&](int64_t begin, int64_t end, int thread) {
                     float* total = scratch.of(thread);
                     for (int64_t r = rows.begin + begin; r < rows.begin + end; ++r) {
                       sum.row(r, total);
                       store_row(run, kernels, total, y, r, false);
                     }
                   });
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
