// attention: causal attention over the paged KV cache, q [T, Hq·D] → o [T, Hq·D]; a row at position
// p of its sequence sees keys max(0, p − window + 1)..p. A head's sink, if any, is a logit more in
// its softmax, without a value.
#include "ops/attention_tiles.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_attention(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  const int64_t kv_heads = op.integer("kv_heads");
  const int64_t head_dim = op.integer("head_dim");
  op.require(heads > 0 && heads <= 4096 && kv_heads > 0 && head_dim > 0 && head_dim <= 4096,
             "heads, kv_heads and head_dim must be within 1..4096");
  op.require(heads % kv_heads == 0, "kv_heads must divide heads");
  const BufferDesc& q = *op.input(0);
  const BufferDesc& o = op.output(0);
  op.require_activation(q, heads * head_dim);
  op.require_activation(o, heads * head_dim);
  op.require_alike(q, o);
  op.require(q.shape[0].symbol == Symbol::kTokens, "buffer %s must have T rows", q.name.c_str());
  op.require_kv(*op.input(1), kv_heads, head_dim);
  op.require_weight_vector(op.input(2), heads);
  op.require_same_part();
  const double softcap = op.number_or("softcap", 0);
  const int64_t window = op.integer_or("window", 0);
  op.require(softcap >= 0, "softcap is negative");
  op.require(!op.has("window") || window > 0, "window must be positive");
  const AttentionShape shape{.heads = heads,
                             .kv_heads = kv_heads,
                             .key_dim = head_dim,
                             .value_dim = head_dim,
                             .planes = 2,
                             .block_size = op.program.limits.block_size,
                             .window = window,
                             .scale = static_cast<float>(op.number("scale")),
                             .softcap = static_cast<float>(softcap)};
  return [shape](const HostRun& run) {
    run_attention(run, shape,
                  {.q = run.in[0],
                   .more_q = {},
                   .kv = run.in[1],
                   .sinks = run.in[2] ? floats(run.in[2]) : nullptr,
                   .o = run.out[0]});
  };
}

}  // namespace nanoweave
