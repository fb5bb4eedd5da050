// gelu_mul: y = gelu_tanh(gate)·up with gate_up [T, 2I] = gate then up, y [T, I].
#include "cpu/vector_kernels.h"
#include "ops/gated.h"

namespace nanoweave {

HostKernel prepare_gelu_mul(const OpInstance& op) {
  check_gated(op);
  return [](const HostRun& run) { run_gated(run, vector_kernels(run.rank.isa).gelu_mul); };
}

}  // namespace nanoweave
