// all_gather: y [rows, C·W] holds the columns x [rows, C] of every rank side by side, in rank
// order. Two barriers: all x are written before any is read; none is overwritten while a peer reads
// it.
#include <cstring>

#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_all_gather(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols() * op.program.tp);
  op.require_alike(x, y);
  op.require_same_part();
  op.require_distinct(0, 0);
  op.collective_form();

  return [](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    if (x.rows == 0) return;
    const int world = run.rank.tp;
    run.group_barrier(0);
    for_row_chunks(run.rank, y.rows, y.cols, [&](int64_t begin, int64_t end, int) {
      for (int peer = 0; peer < world; ++peer) {
        const Tensor source = run.at_peer(x, run.rank.tp_first() + peer);
        for (int64_t r = begin; r < end; ++r)
          std::memcpy(y.row(r) + peer * x.row_bytes(), source.row(r), x.row_bytes());
      }
    });
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
