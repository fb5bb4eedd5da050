// silu_mul: y = silu(gate)·up with gate_up [T, 2I] = gate then up, y [T, I].
#include "cpu/vector_kernels.h"
#include "ops/gated.h"

namespace nanoweave {

HostKernel prepare_silu_mul(const OpInstance& op) {
  check_gated(op);
  return [](const HostRun& run) { run_gated(run, vector_kernels(run.rank.isa).silu_mul); };
}

}  // namespace nanoweave
