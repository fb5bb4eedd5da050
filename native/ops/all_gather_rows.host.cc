// all_gather_rows: x [T, C] of which a rank has the rows it owns of every group, in place:
// afterwards every rank has all of them. Barriers: nobody reads what was there; all rows have
// arrived.
#include "ops/gather_owned_rows.h"

namespace nanoweave {

HostKernel prepare_all_gather_rows(const OpInstance& op) {
  op.require_activation(*op.input(0), -1);
  op.require_in_place(0, 0);
  op.require_same_part();
  op.collective_form();
  const int groups = require_groups(op);

  return [=](const HostRun& run) {
    const Tensor& x = run.out[0];
    run.group_barrier(0);
    for (int group = 0; group < groups; ++group) push_owned_rows(run, x, groups, group);
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
