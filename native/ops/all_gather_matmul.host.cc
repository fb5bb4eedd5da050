// all_gather_matmul: all_gather_rows(x), then y = x·Wᵀ + bias. A rank stores its rows of a group to
// all, raises a flag, and multiplies what has arrived, its own rows first; the rows of the next
// group travel before those of this one are multiplied. A row's bits are those of matmul.
//
// Barrier at the entry: nobody reads x as it was. None at the end: a rank has then seen all rows it
// is sent, and reads nobody else's.
#include "ops/gather_owned_rows.h"

namespace nanoweave {

HostKernel prepare_all_gather_matmul(const OpInstance& op) {
  const BufferDesc& y = op.output(1);
  const HostMatmul product(op, y);
  op.require_in_place(0, 0);
  op.require_distinct(0, 1);
  op.collective_form();
  const int groups = require_groups(op);
  const int part = op.op.part();

  return [=](const HostRun& run) {
    const Tensor& x = run.out[0];
    const Tensor& y = run.out[1];
    const HostRank& rank = run.rank;
    GroupFlags flags(run, part);
    const auto send = [&](int group) {
      push_owned_rows(run, x, groups, group);
      flags.publish(group);
    };
    run.group_barrier(groups);
    send(0);
    for (int group = 0; group < groups; ++group) {
      if (group + 1 < groups) send(group + 1);
      for (int step = 0; step < rank.tp; ++step) {
        const int source = (rank.tp_rank() + step) % rank.tp;
        const RowSpan rows = owned_group_rows(x.rows, groups, group, rank.tp, source);
        flags.wait_for(source, group);
        product.run(run, take_rows(x, rows), take_rows(y, rows), x.rows);
      }
    }
  };
}

}  // namespace nanoweave
