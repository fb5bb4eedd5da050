// grouped_glu: y = act(gate)·up over the rows a rank received, gate_up [N, 2I] = gate then up,
// y [N, I]. clamped_silu (gpt-oss): gate ≤ limit, |up| ≤ limit, y = gate·σ(alpha·gate)·(up + 1).
#include <algorithm>
#include <cmath>

#include "cpu/vector_kernels.h"
#include "ops/experts.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

void clamped_silu(const float* gate, const float* up, int64_t n, float alpha, float limit,
                  float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = std::min(gate[i], limit);
    const float u = std::clamp(up[i], -limit, limit);
    out[i] = g / (1.0f + std::exp(-alpha * g)) * (u + 1.0f);
  }
}

}  // namespace

HostKernel prepare_grouped_glu(const OpInstance& op) {
  const BufferDesc& gate_up = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_float(y);
  require_fixed(op, y, -1, -1, y.dtype);
  require_fixed(op, gate_up, y.max_rows(), 2 * y.cols(), y.dtype);
  const int64_t experts = require_offsets(op, *op.input(1));
  op.require_distinct(0, 0);
  const std::string activation = op.string_or("activation", "");
  const bool clamped = activation == "clamped_silu";
  const bool gelu = activation == "gelu_tanh";
  op.require(clamped || gelu || activation == "silu",
             "activation is '%s', not 'silu', 'gelu_tanh' or 'clamped_silu'", activation.c_str());
  const auto alpha = static_cast<float>(clamped ? op.number("alpha") : 0);
  const auto limit = static_cast<float>(clamped ? op.number("limit") : 0);
  op.require(!clamped || limit > 0, "limit must be positive");

  return [=](const HostRun& run) {
    const Tensor& gate_up = run.in[0];
    const Tensor& y = run.out[0];
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const ThreadFloats scratch(run.rank, clamped ? 2 * y.cols : 0);
    const int64_t rows = checked_offsets(run, run.in[1], y.rows)[experts];
    for_row_chunks(run.rank, rows, gate_up.cols, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t r = begin; r < end; ++r) {
        const std::byte* gate = gate_up.row(r);
        if (clamped) {
          float* values = scratch.of(thread);
          kernels.load(y.dtype, gate, 2 * y.cols, values);
          clamped_silu(values, values + y.cols, y.cols, alpha, limit, values);
          kernels.store(y.dtype, values, y.cols, y.row(r));
          continue;
        }
        const auto glu = gelu ? kernels.gelu_mul : kernels.silu_mul;
        glu(y.dtype, gate, gate + y.row_bytes(), y.cols, y.row(r));
      }
    });
  };
}

}  // namespace nanoweave
