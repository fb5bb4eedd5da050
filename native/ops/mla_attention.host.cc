// mla_attention: causal attention over a paged cache of latent vectors (DeepSeek-V2,
// https://arxiv.org/abs/2405.04434, section 2.1, in its absorbed form). All heads share one key per
// token, the latent vector and its rotated part; the value is the latent vector. q_latent
// [T, heads·L] and q_rope [T, heads·R] → o [T, heads·L].
#include "ops/attention_tiles.h"

namespace nanoweave {

HostKernel prepare_mla_attention(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  const int64_t latent = op.integer("latent_dim");
  const int64_t rope = op.integer("rope_dim");
  op.require(heads > 0 && heads <= 4096 && latent > 0 && latent <= 4096 && rope > 0 && rope <= 4096,
             "heads, latent_dim and rope_dim must be within 1..4096");
  const BufferDesc& q_latent = *op.input(0);
  const BufferDesc& q_rope = *op.input(1);
  const BufferDesc& o = op.output(0);
  op.require_activation(q_latent, heads * latent);
  op.require_activation(q_rope, heads * rope);
  op.require_activation(o, heads * latent);
  op.require_alike(q_latent, q_rope);
  op.require_alike(q_latent, o);
  op.require(q_latent.shape[0].symbol == Symbol::kTokens, "buffer %s must have T rows",
             q_latent.name.c_str());
  op.require_latent_cache(*op.input(2), latent + rope);
  op.require_same_part();
  const AttentionShape shape{.heads = heads,
                             .kv_heads = 1,
                             .key_dim = latent + rope,
                             .value_dim = latent,
                             .planes = 1,
                             .block_size = op.program.limits.block_size,
                             .scale = static_cast<float>(op.number("scale"))};
  return [shape](const HostRun& run) {
    run_attention(run, shape,
                  {.q = run.in[0], .more_q = run.in[1], .kv = run.in[2], .o = run.out[0]});
  };
}

}  // namespace nanoweave
