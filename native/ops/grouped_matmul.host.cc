// grouped_matmul: y = x·W[e]ᵀ + bias[e] for the rows [offsets[e], offsets[e + 1]) of each local
// expert e. x [N, K], y [N, M]; the experts' weights [M, K] lie below each other, each padded to
// whole panels, so that an expert is a packed matrix of its own. Experts are dealt to the threads
// together: a token chooses several, and each alone is little work.
#include <array>

#include "cpu/matmul.h"
#include "ops/experts.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_grouped_matmul(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& weight = *op.input(2);
  const BufferDesc& y = op.output(0);
  op.require_float(x);
  op.require_float(y);
  require_fixed(op, x, -1, -1, x.dtype);
  require_fixed(op, y, x.max_rows(), -1, y.dtype);
  const int64_t experts = require_offsets(op, *op.input(1));
  const int64_t padded =
      (y.cols() + kExpertRowMultiple - 1) / kExpertRowMultiple * kExpertRowMultiple;
  op.require_weight_matrix(weight, experts * padded, x.cols());
  op.require_weight_vector(op.input(3), experts * padded);
  op.require_distinct(0, 0);
  const int64_t expert_bytes = packed_bytes(weight.dtype, padded, x.cols());

  return [=](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    const int32_t* offsets = checked_offsets(run, run.in[1], x.rows);
    std::array<MatmulArgs, kMatmulsTogether> together;
    size_t count = 0;
    const auto flush = [&] {
      matmuls({together.data(), count}, run.rank.isa, *run.rank.pool, *run.rank.scratch);
      count = 0;
    };
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t rows = offsets[e + 1] - offsets[e];
      if (rows == 0) continue;
      together[count++] = {.x = {x.row(offsets[e]), x.dtype, rows, x.cols},
                           .w = run.in[2].data + e * expert_bytes,
                           .w_dtype = run.in[2].dtype,
                           .n = y.cols,
                           .bias = run.in[3] ? floats(run.in[3]) + e * padded : nullptr,
                           .y = {y.row(offsets[e]), y.dtype, rows, y.cols},
                           .deterministic = run.rank.deterministic};
      if (count == together.size()) flush();
    }
    flush();
  };
}

}  // namespace nanoweave
