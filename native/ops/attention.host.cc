// attention: causal attention over the paged KV cache, q [T, Hq·D] → o [T, Hq·D].
// A row at position p of its sequence sees keys max(0, p − window + 1)..p.
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/kv.h"
#include "ops/op.h"
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
  op.require_same_part();
  const auto scale = static_cast<float>(op.number("scale"));
  const auto softcap = static_cast<float>(op.number_or("softcap", 0));
  const int64_t window = op.integer_or("window", 0);
  op.require(softcap >= 0, "softcap is negative");
  op.require(!op.has("window") || window > 0, "window must be positive");
  const int64_t block_size = op.program.limits.block_size;
  const int64_t group = heads / kv_heads;

  return [=](const HostRun& run) {
    const GroupStep& step = run.step;
    const Tensor& q = run.in[0];
    const Tensor& o = run.out[0];
    const KvView kv{run.in[1], kv_heads, block_size, head_dim};
    std::vector<float> query(head_dim), key(head_dim), out(head_dim), scores;
    for (int64_t s = 0; s < step.num_seqs(); ++s) {
      const int64_t begin = std::max<int64_t>(step.seq_starts[s], run.tokens.begin);
      const int64_t end = std::min<int64_t>(step.seq_starts[s + 1], run.tokens.end);
      const int32_t* blocks = step.block_tables.data() + s * step.block_table_width;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t r = t - run.tokens.begin;
        if (step.kv_slots[t] < 0) {
          std::memset(o.row(r), 0, o.row_bytes());
          continue;
        }
        const int64_t position = step.positions[t];
        const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t head_bytes = head_dim * dtype_bytes(q.dtype);
          load_floats(q.dtype, q.row(r) + h * head_bytes, head_dim, query.data());
          scores.resize(position - first + 1);
          float largest = -INFINITY;
          for (int64_t p = first; p <= position; ++p) {
            const int64_t slot = int64_t{blocks[p / block_size]} * block_size + p % block_size;
            load_floats(kv.dtype(), kv.key(slot, h / group), head_dim, key.data());
            float dot = 0;
            for (int64_t i = 0; i < head_dim; ++i) dot += query[i] * key[i];
            dot *= scale;
            if (softcap > 0) dot = softcap * std::tanh(dot / softcap);
            scores[p - first] = dot;
            largest = std::max(largest, dot);
          }
          float total = 0;
          std::fill(out.begin(), out.end(), 0.0f);
          for (int64_t p = first; p <= position; ++p) {
            const int64_t slot = int64_t{blocks[p / block_size]} * block_size + p % block_size;
            load_floats(kv.dtype(), kv.value(slot, h / group), head_dim, key.data());
            const float weight = std::exp(scores[p - first] - largest);
            total += weight;
            for (int64_t i = 0; i < head_dim; ++i) out[i] += weight * key[i];
          }
          for (float& value : out) value /= total;
          store_floats(o.dtype, out.data(), head_dim, o.row(r) + h * head_bytes);
        }
      }
    }
  };
}

}  // namespace nanoweave
