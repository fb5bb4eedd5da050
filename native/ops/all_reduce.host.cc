// all_reduce: y = Σ over the group of x, [T, C], in rank order, one rounding. With few rows every
// rank sums every row; with many a rank sums the rows it owns and stores them to all.
#include "ops/op.h"
#include "ops/reduce.h"

namespace nanoweave {

HostKernel prepare_all_reduce(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols());
  op.require_alike(x, y);
  op.require_same_part();
  op.require_distinct(0, 0);
  op.require(op.program.tp <= kMaxGroupRanks, "groups have at most %d ranks", kMaxGroupRanks);

  const int64_t two_shot_from = plan_sharding(op.collective_form(), op.program.tp);

  return [=](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    if (x.rows == 0) return;
    const HostRank& rank = run.rank;
    const bool two_shot = x.rows >= two_shot_from;
    const RowSpan rows =
        two_shot ? owned_rows(x.rows, rank.tp, rank.tp_rank()) : RowSpan{0, x.rows};
    run.group_barrier(0);
    sum_rows(run, x, y, rows, two_shot);
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
