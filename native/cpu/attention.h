// The unit of attention work: query heads that share a KV head for a few neighbouring tokens of one
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

// Elements of a row of AttentionState::values: value_dim rounded up to the widest vector.
inline int64_t attention_value_stride(int64_t value_dim) { return (value_dim + 15) / 16 * 16; }

// Columns of the queries: a query is its pieces one behind the other.
struct QueryPiece {
  const std::byte* data = nullptr;  // first token's first head of the unit, [heads, dim] a token
  int64_t dim = 0;                  // of a head
  int64_t token_stride = 0;         // bytes between tokens
};

struct AttentionUnit {
  KvView kv;
  int64_t kv_head = 0;
  int64_t value_dim = 0;            // elements of a value, the first of its row; keys: kv.head_dim
  const int32_t* blocks = nullptr;  // the sequence's KV blocks, by position / block_size
  const int32_t* positions = nullptr;  // [tokens], ascending
  const int32_t* slots = nullptr;      // [tokens] −1: a padding row, sees no keys
  int64_t tokens = 0;
  int64_t group = 1;  // query heads of the unit; rows = tokens · group, heads of a token together
  float scale = 1;    // of scores
  float softcap = 0;  // 0: off
  const float* sinks = nullptr;  // [group] logits that join the sums of weights; null: none
  int64_t window = 0;            // 0: off
  int64_t first_key = 0;         // the least key any row sees
  int64_t end_key = 0;           // one past the last key any row sees
  int64_t split_begin = 0;       // splits [begin, end) of kSplitKeys keys
  int64_t split_end = 0;

  DType dtype = DType::kF32;           // of queries and outputs
  QueryPiece queries[2];               // their dims add up to kv.head_dim; the second may be empty
  std::byte* outputs = nullptr;        // [group, value_dim] a token; null: leave it in `partials`
  int64_t output_stride = 0;           // bytes between tokens
  AttentionState* partials = nullptr;  // [split_end − split_begin], when outputs is null
  float* scratch = nullptr;            // attention_scratch_floats(), of the running thread
};

// Floats of scratch a unit of `rows` rows needs.
int64_t attention_scratch_floats(int64_t rows, int64_t key_dim, int64_t value_dim);

}  // namespace nanoweave
