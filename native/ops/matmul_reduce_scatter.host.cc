// matmul_reduce_scatter: as matmul_all_reduce, but a rank sums only the rows it owns of every
// group, and keeps them; other rows of y are left as they are.
#include "ops/reduce.h"
#include "ops/row_groups.h"

namespace nanoweave {

HostKernel prepare_matmul_reduce_scatter(const OpInstance& op) {
  const BufferDesc& partial = op.output(0);
  const HostMatmul product(op, partial);
  require_sum(op, partial, op.output(1));
  op.require_distinct(0, 0);
  op.require_distinct(0, 1);
  const int groups = require_groups(op);
  const int part = op.op.part();
  op.collective_form();

  return [=](const HostRun& run) {
    const Tensor& partial = run.out[0];
    const HostRank& rank = run.rank;
    multiply_and_reduce(run, product, partial, groups, part, [&](int group) {
      const RowSpan rows = owned_group_rows(partial.rows, groups, group, rank.tp, rank.tp_rank());
      sum_rows(run, partial, run.out[1], rows, false);
    });
  };
}

}  // namespace nanoweave
