// Attention over a part of a step on the CPU: its rows are cut into units of neighbouring tokens
// and query heads of one KV head, and further into key splits where a few long sequences would
// leave threads idle; cpu/attention.h says why none of this changes a row's bits.
#pragma once

#include "ops/op.h"

namespace nanoweave {

struct AttentionShape {
  int64_t heads, kv_heads;
  int64_t key_dim, value_dim;
  int64_t planes;  // of the cache: 2, or 1 where values are the first elements of the keys
  int64_t block_size;
  int64_t window = 0;  // 0: off
  float scale = 1;
  float softcap = 0;  // 0: off
};

struct AttentionOperands {
  Tensor q;       // [T, heads · columns of a head]
  Tensor more_q;  // the columns of each head that follow those of q; absent: none
  Tensor kv;
  const float* sinks = nullptr;  // [heads] logits that join the softmax; null: none
  Tensor o;                      // [T, heads · value_dim]
};

void run_attention(const HostRun& run, const AttentionShape& shape,
                   const AttentionOperands& operands);

}  // namespace nanoweave
