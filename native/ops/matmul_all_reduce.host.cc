// matmul_all_reduce: y = Σ over the group of (x·Wᵀ + bias), [T, N]. The product goes to `partial`,
// group of rows by group of rows; what all ranks have multiplied is summed while later groups are.
// As in all_reduce, with few rows every rank sums every row, with many it stores its own to all;
// the sums are those of matmul and all_reduce, bit for bit. y may be f32 whatever x is: then they
// are not rounded.
#include "ops/reduce.h"
#include "ops/row_groups.h"

namespace nanoweave {

HostKernel prepare_matmul_all_reduce(const OpInstance& op) {
  const BufferDesc& partial = op.output(0);
  const HostMatmul product(op, partial);
  require_sum(op, partial, op.output(1));
  op.require_distinct(0, 0);
  op.require_distinct(0, 1);
  const int groups = require_groups(op);
  const int part = op.op.part();
  const int64_t two_shot_from = plan_sharding(op.collective_form(), op.program.tp);

  return [=](const HostRun& run) {
    const Tensor& partial = run.out[0];
    const Tensor& y = run.out[1];
    const HostRank& rank = run.rank;
    const bool two_shot = partial.rows >= two_shot_from;
    multiply_and_reduce(run, product, partial, groups, part, [&](int group) {
      const RowSpan rows =
          two_shot ? owned_group_rows(partial.rows, groups, group, rank.tp, rank.tp_rank())
                   : group_rows(partial.rows, groups, group);
      sum_rows(run, partial, y, rows, two_shot);
    });
  };
}

}  // namespace nanoweave
