// The op table: one line of signature per op, in the order of lib/ops/index.ts (docs/ops.md).
#include "ops/op.h"

namespace nanoweave {

HostKernel prepare_embed(const OpInstance& instance);
HostKernel prepare_rope_table(const OpInstance& instance);
HostKernel prepare_rms_norm(const OpInstance& instance);
HostKernel prepare_add_rms_norm(const OpInstance& instance);
HostKernel prepare_matmul(const OpInstance& instance);
HostKernel prepare_mean_squares(const OpInstance& instance);
HostKernel prepare_split_rope_cache(const OpInstance& instance);
HostKernel prepare_attention(const OpInstance& instance);
HostKernel prepare_mla_split_rope_cache(const OpInstance& instance);
HostKernel prepare_head_matmul(const OpInstance& instance);
HostKernel prepare_mla_attention(const OpInstance& instance);
HostKernel prepare_silu_mul(const OpInstance& instance);
HostKernel prepare_gelu_mul(const OpInstance& instance);
HostKernel prepare_gather_rows(const OpInstance& instance);
HostKernel prepare_logits(const OpInstance& instance);
HostKernel prepare_all_gather(const OpInstance& instance);
HostKernel prepare_sample(const OpInstance& instance);
HostKernel prepare_all_reduce(const OpInstance& instance);
HostKernel prepare_reduce_scatter(const OpInstance& instance);
HostKernel prepare_all_reduce_rms_norm(const OpInstance& instance);
HostKernel prepare_all_gather_rows(const OpInstance& instance);
HostKernel prepare_matmul_all_reduce(const OpInstance& instance);
HostKernel prepare_matmul_reduce_scatter(const OpInstance& instance);
HostKernel prepare_all_gather_matmul(const OpInstance& instance);
HostKernel prepare_moe_route(const OpInstance& instance);
HostKernel prepare_moe_place(const OpInstance& instance);
HostKernel prepare_moe_dispatch(const OpInstance& instance);
HostKernel prepare_grouped_matmul(const OpInstance& instance);
HostKernel prepare_grouped_glu(const OpInstance& instance);
HostKernel prepare_moe_combine(const OpInstance& instance);
HostKernel prepare_copy(const OpInstance& instance);
HostKernel prepare_stall(const OpInstance& instance);

std::span<const OpDef> op_table() {
  static const std::vector<OpDef> table = {
      {"embed", {"table"}, {"x"}, {{"scale", "number?"}}, false, prepare_embed},
      {"rope_table",
       {},
       {"table"},
       {{"inv_freq", "numbers"},
        {"attention_factor", "number?"},
        {"dynamic_factor", "number?"},
        {"dynamic_base", "number?"},
        {"dynamic_original", "number?"}},
       false,
       prepare_rope_table},
      {"rms_norm", {"x", "weight"}, {"y"}, {{"eps", "number"}}, false, prepare_rms_norm},
      {"add_rms_norm",
       {"x", "residual", "weight", "post_weight?"},
       {"y", "residual"},
       {{"eps", "number"}, {"owned_groups", "number?"}},
       false,
       prepare_add_rms_norm},
      {"matmul",
       {"x", "weight", "bias?"},
       {"y"},
       {{"bias_on", "string?"}, {"implementation", "string?"}},
       false,
       prepare_matmul},
      {"mean_squares",
       {"qkv"},
       {"y"},
       {{"heads", "number"}, {"kv_heads", "number"}, {"head_dim", "number"}},
       false,
       prepare_mean_squares},
      {"split_rope_cache",
       {"qkv", "table", "q_norm?", "k_norm?", "means?"},
       {"q", "kv"},
       {{"heads", "number"},
        {"kv_heads", "number"},
        {"head_dim", "number"},
        {"rotary_dim", "number"},
        {"eps", "number?"}},
       false,
       prepare_split_rope_cache},
      {"attention",
       {"q", "kv", "sinks?"},
       {"o"},
       {{"heads", "number"},
        {"kv_heads", "number"},
        {"head_dim", "number"},
        {"scale", "number"},
        {"softcap", "number?"},
        {"window", "number?"}},
       false,
       prepare_attention},
      {"mla_split_rope_cache",
       {"q", "latent", "table", "norm"},
       {"q_rope", "kv"},
       {{"heads", "number"},
        {"latent_dim", "number"},
        {"rope_dim", "number"},
        {"eps", "number"},
        {"interleaved", "boolean?"}},
       false,
       prepare_mla_split_rope_cache},
      {"head_matmul", {"x", "weight"}, {"y"}, {{"heads", "number"}}, false, prepare_head_matmul},
      {"mla_attention",
       {"q_latent", "q_rope", "kv"},
       {"o"},
       {{"heads", "number"}, {"latent_dim", "number"}, {"rope_dim", "number"}, {"scale", "number"}},
       false,
       prepare_mla_attention},
      {"silu_mul", {"gate_up"}, {"y"}, {}, false, prepare_silu_mul},
      {"gelu_mul", {"gate_up"}, {"y"}, {}, false, prepare_gelu_mul},
      {"gather_rows", {"x"}, {"y"}, {}, false, prepare_gather_rows},
      {"logits", {"x", "weight"}, {"l"}, {{"softcap", "number?"}}, false, prepare_logits},
      {"all_gather", {"x"}, {"y"}, {{"form", "string?"}}, true, prepare_all_gather},
      {"sample", {"logits"}, {"tokens"}, {{"vocab_size", "number"}}, false, prepare_sample},
      {"all_reduce", {"x"}, {"y"}, {{"form", "string?"}}, true, prepare_all_reduce},
      {"reduce_scatter", {"x"}, {"y"}, {{"form", "string?"}}, true, prepare_reduce_scatter},
      {"all_reduce_rms_norm",
       {"partial", "residual", "weight", "post_weight?"},
       {"y", "residual"},
       {{"eps", "number"}, {"form", "string?"}},
       true,
       prepare_all_reduce_rms_norm},
      {"all_gather_rows",
       {"x"},
       {"x"},
       {{"groups", "number"}, {"form", "string?"}},
       true,
       prepare_all_gather_rows},
      {"matmul_all_reduce",
       {"x", "weight", "bias?"},
       {"partial", "y"},
       {{"groups", "number"},
        {"bias_on", "string?"},
        {"implementation", "string?"},
        {"form", "string?"}},
       true,
       prepare_matmul_all_reduce},
      {"matmul_reduce_scatter",
       {"x", "weight", "bias?"},
       {"partial", "y"},
       {{"groups", "number"},
        {"bias_on", "string?"},
        {"implementation", "string?"},
        {"form", "string?"}},
       true,
       prepare_matmul_reduce_scatter},
      {"all_gather_matmul",
       {"x", "weight", "bias?"},
       {"x", "y"},
       {{"groups", "number"},
        {"bias_on", "string?"},
        {"implementation", "string?"},
        {"form", "string?"}},
       true,
       prepare_all_gather_matmul},
      {"moe_route",
       {"logits", "bias?"},
       {"ids", "weights"},
       {{"score", "string"},
        {"normalise", "boolean?"},
        {"scale", "number?"},
        {"groups", "number?"},
        {"top_groups", "number?"},
        {"group_score", "string?"}},
       false,
       prepare_moe_route},
      {"moe_place",
       {"ids", "gate_up", "down", "gate_up_bias?", "down_bias?"},
       {"slots"},
       {{"table", "number"}},
       false,
       prepare_moe_place},
      {"moe_dispatch",
       {"x", "ids"},
       {"hidden", "rx_ids", "counts", "rows", "grouped", "offsets"},
       {{"experts", "number"}, {"ep", "number"}},
       true,
       prepare_moe_dispatch,
       true},
      {"grouped_matmul",
       {"x", "offsets", "weight", "bias?"},
       {"y"},
       {},
       false,
       prepare_grouped_matmul},
      {"grouped_glu",
       {"gate_up", "offsets"},
       {"y"},
       {{"activation", "string"}, {"alpha", "number?"}, {"limit", "number?"}},
       false,
       prepare_grouped_glu},
      {"moe_combine",
       {"expert_out", "rows", "ids", "weights", "shared?", "shared_gate?"},
       {"y"},
       {{"experts", "number"}, {"ep", "number"}},
       true,
       prepare_moe_combine,
       true},
      {"copy", {"x"}, {"y"}, {}, false, prepare_copy},
      {"stall", {"x"}, {"x"}, {{"rank", "number"}, {"ms", "number"}}, false, prepare_stall},
  };
  return table;
}

}  // namespace nanoweave
