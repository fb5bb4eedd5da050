// matmul: y = x·Wᵀ + bias, x [T, K], W [N, K] packed, y [T, N]. The arithmetic is in cpu/matmul.
#include "cpu/matmul.h"

#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_matmul(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& weight = *op.input(1);
  const BufferDesc* bias = op.input(2);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, -1);
  op.require(x.shape[0].symbol == y.shape[0].symbol, "buffers %s and %s have rows of other symbols",
             x.name.c_str(), y.name.c_str());
  op.require_weight_matrix(weight, y.cols(), x.cols());
  op.require_weight_vector(bias, y.cols());
  op.require_same_part();
  op.require_distinct(0, 0);
  const std::string bias_on = op.string_or("bias_on", "all");
  op.require(bias_on == "all" || bias_on == "rank0", "bias_on is '%s', not 'all' or 'rank0'",
             bias_on.c_str());
  const std::string implementation = op.string_or("implementation", "auto");
  op.require(implementation == "auto" || implementation == "own" || implementation == "cublaslt",
             "implementation is '%s', not 'auto', 'own' or 'cublaslt'", implementation.c_str());
  const bool first_rank_only = bias_on == "rank0";

  return [=](const HostRun& run) {
    const bool has_bias = run.in[2] && (!first_rank_only || run.rank.tp_rank() == 0);
    matmul({.x = run.in[0],
            .w = run.in[1].data,
            .w_dtype = run.in[1].dtype,
            .n = run.out[0].cols,
            .bias = has_bias ? floats(run.in[2]) : nullptr,
            .y = run.out[0],
            .deterministic = run.rank.deterministic},
           run.rank.isa, *run.rank.pool, *run.rank.scratch);
  };
}

}  // namespace nanoweave
