// logits: l = x·Wᵀ in float32, softcap·tanh(l / softcap) when capped; x [R, H], W [V/W, H] packed.
#include "cpu/matmul.h"
#include "ops/op.h"

namespace nanoweave {

HostKernel prepare_logits(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& l = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(l, -1);
  op.require(x.shape[0].symbol == l.shape[0].symbol, "buffers %s and %s have rows of other symbols",
             x.name.c_str(), l.name.c_str());
  op.require(l.dtype == DType::kF32, "buffer %s must be f32", l.name.c_str());
  op.require_weight_matrix(*op.input(1), l.cols(), x.cols());
  op.require_same_part();
  op.require_distinct(0, 0);
  const auto softcap = static_cast<float>(op.number_or("softcap", 0));
  op.require(softcap >= 0, "softcap is negative");

  return [softcap](const HostRun& run) {
    matmul({.x = run.in[0],
            .w = run.in[1].data,
            .w_dtype = run.in[1].dtype,
            .n = run.out[0].cols,
            .y = run.out[0],
            .softcap = softcap,
            .deterministic = run.rank.deterministic},
           run.rank.isa, *run.rank.pool, *run.rank.scratch);
  };
}

}  // namespace nanoweave
