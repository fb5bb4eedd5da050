// matmul: y = x·Wᵀ + bias, x [T, K], W [N, K] packed, y [T, N]. The arithmetic is in cpu/matmul.
#include "cpu/matmul.h"

#include "ops/host_matmul.h"
#include "ops/rows.h"

namespace nanoweave {

HostMatmul::HostMatmul(const OpInstance& op, const BufferDesc& y) {
  const BufferDesc& x = *op.input(0);
  op.require_activation(x, -1);
  op.require_activation(y, -1);
  op.require(x.shape[0].symbol == y.shape[0].symbol, "buffers %s and %s have rows of other symbols",
             x.name.c_str(), y.name.c_str());
  op.require_weight_matrix(*op.input(1), y.cols(), x.cols());
  op.require_weight_vector(op.input(2), y.cols());
  op.require_same_part();
  const std::string bias_on = op.string_or("bias_on", "all");
  op.require(bias_on == "all" || bias_on == "rank0", "bias_on is '%s', not 'all' or 'rank0'",
             bias_on.c_str());
  first_rank_only_ = bias_on == "rank0";
  const std::string implementation = op.string_or("implementation", "auto");
  op.require(implementation == "auto" || implementation == "own" || implementation == "cublaslt",
             "implementation is '%s', not 'auto', 'own' or 'cublaslt'", implementation.c_str());
}

void HostMatmul::run(const HostRun& run, const Tensor& x, const Tensor& y,
                     int64_t whole_rows) const {
  const bool has_bias = run.in[2] && (!first_rank_only_ || run.rank.tp_rank() == 0);
  matmul({.x = x,
          .w = run.in[1].data,
          .w_dtype = run.in[1].dtype,
          .n = y.cols,
          .bias = has_bias ? floats(run.in[2]) : nullptr,
          .y = y,
          .deterministic = run.rank.deterministic,
          .whole_rows = whole_rows},
         run.rank.isa, *run.rank.pool, *run.rank.scratch);
}

HostKernel prepare_matmul(const OpInstance& op) {
  const HostMatmul product(op, op.output(0));
  op.require_distinct(0, 0);
  return [product](const HostRun& run) { product.run(run, run.in[0], run.out[0], run.in[0].rows); };
}

}  // namespace nanoweave
