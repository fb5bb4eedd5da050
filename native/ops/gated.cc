// The row loop of the gated activations.
#include "ops/gated.h"

#include "cpu/vector_kernels.h"
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
  const VectorKernels& kernels = vector_kernels(run.rank.isa);
  const ThreadFloats scratch(run.rank, gate_up.cols);
  for_row_chunks(run.rank, y.rows, gate_up.cols, [&](int64_t begin, int64_t end, int thread) {
    float* row = scratch.of(thread);
    for (int64_t r = begin; r < end; ++r) {
      kernels.load(gate_up.dtype, gate_up.row(r), gate_up.cols, row);
      kernel(row, row + y.cols, y.cols, row);
      kernels.store(y.dtype, row, y.cols, y.row(r));
    }
  });
}

}  // namespace nanoweave
