// reduce_scatter: y[row] = Σ over the group of x[row] for the rows this rank owns, [T, H], in rank
// order, one rounding; other rows of y are left as they are.
#include "ops/op.h"
#include "ops/reduce.h"

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
    const RowSpan rows = owned_rows(x.rows, rank.tp, rank.tp_rank());
    run.group_barrier(0);
    sum_rows(run, x, y, rows, false);
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
