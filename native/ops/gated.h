// What silu_mul and gelu_mul share: the contract of gate_up [T, 2I] → y [T, I] and the row loop.
#pragma once

#include "ops/op.h"

namespace nanoweave {

using GatedKernel = void (*)(DType dtype, const std::byte* gate, const std::byte* up, int64_t n,
                             std::byte* out);

void check_gated(const OpInstance& op);
void run_gated(const HostRun& run, GatedKernel kernel);

}  // namespace nanoweave
