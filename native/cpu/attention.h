// The unit of attention work: the query heads of one KV head for a few neighbouring tokens of one
// sequence, over a range of key splits.
//
// A split is kSplitKeys keys at a multiple of kSplitKeys of the position in the sequence; each is
// reduced on its own to {largest score m, Σ exp(s − m), Σ exp(s − m)·v} and splits are merged in
// ascending order. Inside a split keys are taken kTileKeys at a time, again at multiples of the
// position. So what is added to what, for one row, depends on its position and window alone: not
// on its neighbours in the tile, on how the prompt was cut, or on which thread does which split.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kv_view.h"

namespace nanoweave {

inline constexpr int64_t kSplitKeys = 512;
inline constexpr int64_t kTileKeys = 64;

// Partial or final state of `rows` rows: weighted values, largest score, sum of weights.
struct AttentionState {
  float* values = nullptr;   // [rows, value_stride]
  float* largest = nullptr;  // [rows]
  float* total = nullptr;    // [rows]
};

// Elements of a row of AttentionState::values: head_dim rounded up to the widest vector.
inline int64_t attention_value_stride(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

struct AttentionUnit {
  KvView kv;
  int64_t kv_head = 0;
  const int32_t* blocks = nullptr;     // the sequence's KV blocks, by position / block_size
  const int32_t* positions = nullptr;  // [tokens], ascending
  const int32_t* slots = nullptr;      // [tokens] −1: a padding row, sees no keys
  int64_t tokens = 0;
  int64_t group = 1;  // query heads of a KV head; rows = tokens · group, heads of a token together
  float scale = 1;    // of scores
  float softcap = 0;  // 0: off
  const float* sinks = nullptr;  // [group] logits that join the sums of weights; null: none
  int64_t window = 0;            // 0: off
  int64_t first_key = 0;         // the least key any row sees
  int64_t end_key = 0;           // one past the last key any row sees
  int64_t split_begin = 0;       // splits [begin, end) of kSplitKeys keys
  int64_t split_end = 0;

  DType dtype = DType::kF32;           // of queries and outputs
  const std::byte* queries = nullptr;  // first token's first head of the group
  std::byte* outputs = nullptr;        // as queries; null: leave the state in `partials`
  int64_t token_stride = 0;            // bytes between tokens, of queries and outputs
  AttentionState* partials = nullptr;  // [split_end − split_begin], when outputs is null
  float* scratch = nullptr;            // attention_scratch_floats(), of the running thread
};

// Floats of scratch a unit of `rows` rows needs.
int64_t attention_scratch_floats(int64_t rows, int64_t head_dim);

}  // namespace nanoweave
