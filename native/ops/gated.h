// What silu_mul and gelu_mul share: the contract of gate_up [T, 2I] → y [T, I] and the row loop.
#pragma once

#include "ops/op.h"

namespace nanoweave {

using GatedKernel = void (*)(const float* gate, const float* up, int64_t n, float* out);

void check_gated(const OpInstance& op);
void run_gated(const HostRun& run, GatedKernel kernel);

}  // namespace nanoweave
