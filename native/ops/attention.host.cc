// attention: causal attention over the paged KV cache, q [T, Hq·D] → o [T, Hq·D]; a row at position
// p of its sequence sees keys max(0, p − window + 1)..p. A head's sink, if any, is a logit more in
// its softmax, without a value. This file cuts the part's rows into units
// of (tile of neighbouring tokens, KV head), and further into key splits where a few long sequences
// would leave threads idle; cpu/attention.h says why none of this changes a row's bits.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/vector_kernels.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

constexpr int64_t kTileRows = 96;                        // query rows of a unit, about
constexpr int64_t kMaxPartialFloats = int64_t{1} << 24;  // 64 MiB of partial states

struct AttentionShape {
  int64_t heads, kv_heads, head_dim, block_size, window;
  float scale, softcap;

  int64_t group() const { return heads / kv_heads; }
  int64_t tile_tokens() const { return std::max<int64_t>(1, kTileRows / group()); }
};

// Neighbouring tokens of one sequence, and the keys they see.
struct Tile {
  int32_t seq;
  int32_t begin;  // rows of the step
  int32_t end;
  int32_t first_key = 0;
  int32_t end_key = 0;  // first_key when all rows are padding

  int64_t split_begin() const { return first_key / kSplitKeys; }
  int64_t split_end() const {
    return end_key > first_key ? (end_key + kSplitKeys - 1) / kSplitKeys : split_begin();
  }
};

// Calls body(tile) for the tiles of a part.
template <typename Body>
void for_tiles(const HostRun& run, const AttentionShape& shape, const Body& body) {
  const GroupStep& step = run.step;
  const auto tile_tokens = static_cast<int32_t>(shape.tile_tokens());
  for (int32_t seq = 0; seq < step.num_seqs(); ++seq) {
    const auto begin =
        static_cast<int32_t>(std::max<int64_t>(step.seq_starts[seq], run.tokens.begin));
    const auto end =
        static_cast<int32_t>(std::min<int64_t>(step.seq_starts[seq + 1], run.tokens.end));
    for (int32_t first = begin; first < end; first += tile_tokens) {
      Tile tile{.seq = seq, .begin = first, .end = std::min(end, first + tile_tokens)};
      bool any = false;
      for (int32_t t = tile.begin; t < tile.end; ++t) {
        if (step.kv_slots[t] < 0) continue;
        const int32_t position = step.positions[t];
        const auto low = static_cast<int32_t>(
            shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0);
        tile.first_key = any ? std::min(tile.first_key, low) : low;
        tile.end_key = std::max(tile.end_key, position + 1);
        any = true;
      }
      body(tile);
    }
  }
}

struct Work {
  Tile tile;
  int32_t kv_head;
  int32_t split_begin;
  int32_t split_end;
  int64_t partial;  // index of the unit's first partial state; -1: writes its outputs itself
};

AttentionUnit make_unit(const HostRun& run, const AttentionShape& shape, const Work& work) {
  const GroupStep& step = run.step;
  const Tensor& q = run.in[0];
  const int64_t row = work.tile.begin - run.tokens.begin;
  const int64_t column_bytes = work.kv_head * shape.group() * shape.head_dim * dtype_bytes(q.dtype);
  return {.kv = {run.in[1], shape.kv_heads, shape.block_size, shape.head_dim},
          .kv_head = work.kv_head,
          .blocks = step.block_tables.data() + work.tile.seq * step.block_table_width,
          .positions = step.positions.data() + work.tile.begin,
          .slots = step.kv_slots.data() + work.tile.begin,
          .tokens = work.tile.end - work.tile.begin,
          .group = shape.group(),
          .scale = shape.scale,
          .softcap = shape.softcap,
          .sinks = run.in[2] ? floats(run.in[2]) + work.kv_head * shape.group() : nullptr,
          .window = shape.window,
          .first_key = work.tile.first_key,
          .end_key = work.tile.end_key,
          .split_begin = work.split_begin,
          .split_end = work.split_end,
          .dtype = q.dtype,
          .queries = q.row(row) + column_bytes,
          .outputs = run.out[0].row(row) + column_bytes,
          .token_stride = q.row_bytes()};
}

// What the part's tiles amount to.
struct Totals {
  int64_t tiles = 0;
  int64_t splits = 0;      // over all tiles
  int64_t max_tokens = 0;  // of a tile
};

void run_attention(const HostRun& run, const AttentionShape& shape) {
  const HostRank& rank = run.rank;
  const VectorKernels& kernels = vector_kernels(rank.isa);
  const int64_t threads = rank.pool->num_threads();
  Totals totals;
  for_tiles(run, shape, [&](const Tile& tile) {
    ++totals.tiles;
    totals.splits += tile.split_end() - tile.split_begin();
    totals.max_tokens = std::max<int64_t>(totals.max_tokens, tile.end - tile.begin);
  });
  if (totals.tiles == 0) return;

  // A partial state is [rows, stride] values, then the rows' largest scores and totals.
  const int64_t max_rows = totals.max_tokens * shape.group();
  const int64_t stride = attention_value_stride(shape.head_dim);
  const int64_t state_floats = (max_rows * (stride + 2) + 15) / 16 * 16;
  const int64_t num_partials = totals.splits * shape.kv_heads;
  const bool by_split = threads > 1 && totals.tiles * shape.kv_heads < 4 * threads &&
                        totals.splits > totals.tiles &&
                        num_partials * state_floats <= kMaxPartialFloats;
  const int64_t num_finals = totals.tiles * shape.kv_heads;
  const int64_t num_works = by_split ? num_partials : num_finals;

  // One piece of scratch: work lists, states, and each thread's own floats.
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t works_bytes = lines(num_works * int64_t{sizeof(Work)});
  const int64_t finals_bytes = by_split ? lines(num_finals * int64_t{sizeof(Work)}) : 0;
  const int64_t partials_bytes =
      by_split ? lines(num_partials * int64_t{sizeof(AttentionState)}) : 0;
  const int64_t states_bytes = by_split ? num_partials * state_floats * int64_t{sizeof(float)} : 0;
  const int64_t thread_floats = attention_scratch_floats(max_rows, shape.head_dim);
  std::byte* memory = rank.scratch->get(works_bytes + finals_bytes + partials_bytes + states_bytes +
                                        threads * thread_floats * int64_t{sizeof(float)});
  auto* works = reinterpret_cast<Work*>(memory);
  auto* finals = reinterpret_cast<Work*>(memory + works_bytes);
  auto* partials = reinterpret_cast<AttentionState*>(memory + works_bytes + finals_bytes);
  auto* states = reinterpret_cast<float*>(memory + works_bytes + finals_bytes + partials_bytes);
  auto* scratch =
      reinterpret_cast<float*>(memory + works_bytes + finals_bytes + partials_bytes + states_bytes);

  // Backwards: later rows of a sequence see more keys, and long units should start first.
  int64_t next = num_works;
  int64_t next_final = 0;
  int64_t next_partial = 0;
  for_tiles(run, shape, [&](const Tile& tile) {
    const auto first = static_cast<int32_t>(tile.split_begin());
    const auto last = static_cast<int32_t>(tile.split_end());
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      if (!by_split) {
        works[--next] = {tile, head, first, last, -1};
        continue;
      }
      finals[next_final++] = {tile, head, first, last, next_partial};
      for (int32_t split = first; split < last; ++split)
        works[--next] = {tile, head, split, split + 1, next_partial++};
    }
  });
  for (int64_t i = 0; by_split && i < num_partials; ++i) {
    float* state = states + i * state_floats;
    partials[i] = {.values = state,
                   .largest = state + max_rows * stride,
                   .total = state + max_rows * (stride + 1)};
  }

  rank.pool->parallel_for(num_works, [&](int64_t index, int thread) {
    const Work& work = works[index];
    AttentionUnit unit = make_unit(run, shape, work);
    unit.scratch = scratch + thread * thread_floats;
    if (by_split) {
      unit.outputs = nullptr;
      unit.partials = partials + work.partial;
    }
    kernels.attend(unit);
  });
  if (!by_split) return;
  rank.pool->parallel_for(num_finals, [&](int64_t index, int thread) {
    const Work& work = finals[index];
    AttentionUnit unit = make_unit(run, shape, work);
    unit.scratch = scratch + thread * thread_floats;
    kernels.finish_attention(unit, partials + work.partial, work.split_end - work.split_begin);
  });
}

}  // namespace

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
                             .head_dim = head_dim,
                             .block_size = op.program.limits.block_size,
                             .window = window,
                             .scale = static_cast<float>(op.number("scale")),
                             .softcap = static_cast<float>(softcap)};
  return [shape](const HostRun& run) { run_attention(run, shape); };
}

}  // namespace nanoweave
