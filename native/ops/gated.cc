// The row loop of the gated activations.
#include "ops/gated.h"

#include "ops/rows.h"

namespace nanoweave {

void check_gated(const OpInstance& op) {
  const BufferDesc& gate_up = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(y, -1);
  op.require_activation(gate_up, 2 * y.cols());
  op.require_alike(gate_up, y);
  op.require_same_part();
}

void run_gated(const HostRun& run, GatedKernel kernel) {
  const Tensor& gate_up = run.in[0];
  const Tensor& y = run.out[0];
  for_row_chunks(run.rank, y.rows, gate_up.cols, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const std::byte* gate = gate_up.row(r);
      kernel(y.dtype, gate, gate + y.row_bytes(), y.cols, y.row(r));
    }
  });
}

}  // namespace nanoweave
