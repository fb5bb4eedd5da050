#include "ops/attention_tiles.h"

#include <algorithm>

#include "cpu/attention.h"
#include "cpu/vector_kernels.h"

namespace nanoweave {
namespace {

constexpr int64_t kTileRows = 96;                        // query rows of a unit, about
constexpr int64_t kUnitHeads = 32;                       // of one KV head, in a unit: at most
constexpr int64_t kMaxPartialFloats = int64_t{1} << 24;  // 64 MiB of partial states

// How the query heads of a KV head are spread over units: where many share one, as in latent
// attention, a few tokens still make work for several threads.
struct HeadUnits {
  explicit HeadUnits(const AttentionShape& shape)
      : group(shape.heads / shape.kv_heads),
        per_kv_head((group + kUnitHeads - 1) / kUnitHeads),
        count(shape.kv_heads * per_kv_head) {}

  int64_t max_heads() const { return (group + per_kv_head - 1) / per_kv_head; }
  int64_t tile_tokens() const { return std::max<int64_t>(1, kTileRows / max_heads()); }
  int64_t kv_head(int64_t unit) const { return unit / per_kv_head; }
  int64_t first_head(int64_t unit) const {
    return kv_head(unit) * group + group * (unit % per_kv_head) / per_kv_head;
  }
  int64_t num_heads(int64_t unit) const {
    const int64_t part = unit % per_kv_head;
    return group * (part + 1) / per_kv_head - group * part / per_kv_head;
  }

  int64_t group;        // query heads of a KV head
  int64_t per_kv_head;  // units
  int64_t count;        // units in all
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
void for_tiles(const HostRun& run, const AttentionShape& shape, const HeadUnits& units,
               const Body& body) {
  const GroupStep& step = run.step;
  const auto tile_tokens = static_cast<int32_t>(units.tile_tokens());
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
  int32_t head_unit;
  int32_t split_begin;
  int32_t split_end;
  int64_t partial;  // index of the unit's first partial state; -1: writes its outputs itself
};

AttentionUnit make_unit(const HostRun& run, const AttentionShape& shape, const HeadUnits& units,
                        const AttentionOperands& operands, const Work& work) {
  const GroupStep& step = run.step;
  const int64_t row = work.tile.begin - run.tokens.begin;
  const int64_t first_head = units.first_head(work.head_unit);
  const auto head_of = [&](const Tensor& x) {
    return x.row(row) + first_head * (x.row_bytes() / shape.heads);
  };
  const auto piece_of = [&](const Tensor& q) -> QueryPiece {
    if (!q) return {};
    return {.data = head_of(q), .dim = q.cols / shape.heads, .token_stride = q.row_bytes()};
  };
  return {.kv = {operands.kv, shape.kv_heads, shape.block_size, shape.key_dim, shape.planes},
          .kv_head = units.kv_head(work.head_unit),
          .value_dim = shape.value_dim,
          .blocks = step.block_tables.data() + work.tile.seq * step.block_table_width,
          .positions = step.positions.data() + work.tile.begin,
          .slots = step.kv_slots.data() + work.tile.begin,
          .tokens = work.tile.end - work.tile.begin,
          .group = units.num_heads(work.head_unit),
          .scale = shape.scale,
          .softcap = shape.softcap,
          .sinks = operands.sinks == nullptr ? nullptr : operands.sinks + first_head,
          .window = shape.window,
          .first_key = work.tile.first_key,
          .end_key = work.tile.end_key,
          .split_begin = work.split_begin,
          .split_end = work.split_end,
          .dtype = operands.q.dtype,
          .queries = {piece_of(operands.q), piece_of(operands.more_q)},
          .outputs = head_of(operands.o),
          .output_stride = operands.o.row_bytes()};
}

// What the part's tiles amount to.
struct Totals {
  int64_t tiles = 0;
  int64_t splits = 0;      // over all tiles
  int64_t max_tokens = 0;  // of a tile
};

}  // namespace

void run_attention(const HostRun& run, const AttentionShape& shape,
                   const AttentionOperands& operands) {
  const HeadUnits units(shape);
  const HostRank& rank = run.rank;
  const VectorKernels& kernels = vector_kernels(rank.isa);
  const int64_t threads = rank.pool->num_threads();
  Totals totals;
  for_tiles(run, shape, units, [&](const Tile& tile) {
    ++totals.tiles;
    totals.splits += tile.split_end() - tile.split_begin();
    totals.max_tokens = std::max<int64_t>(totals.max_tokens, tile.end - tile.begin);
  });
  if (totals.tiles == 0) return;

  // A partial state is [rows, stride] values, then the rows' largest scores and totals.
  const int64_t max_rows = totals.max_tokens * units.max_heads();
  const int64_t stride = attention_value_stride(shape.value_dim);
  const int64_t state_floats = (max_rows * (stride + 2) + 15) / 16 * 16;
  const int64_t num_partials = totals.splits * units.count;
  const bool by_split = threads > 1 && totals.tiles * units.count < 4 * threads &&
                        totals.splits > totals.tiles &&
                        num_partials * state_floats <= kMaxPartialFloats;
  const int64_t num_finals = totals.tiles * units.count;
  const int64_t num_works = by_split ? num_partials : num_finals;

  // One piece of scratch: work lists, states, and each thread's own floats.
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t works_bytes = lines(num_works * int64_t{sizeof(Work)});
  const int64_t finals_bytes = by_split ? lines(num_finals * int64_t{sizeof(Work)}) : 0;
  const int64_t partials_bytes =
      by_split ? lines(num_partials * int64_t{sizeof(AttentionState)}) : 0;
  const int64_t states_bytes = by_split ? num_partials * state_floats * int64_t{sizeof(float)} : 0;
  const int64_t thread_floats = attention_scratch_floats(max_rows, shape.key_dim, shape.value_dim);
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
  for_tiles(run, shape, units, [&](const Tile& tile) {
    const auto first = static_cast<int32_t>(tile.split_begin());
    const auto last = static_cast<int32_t>(tile.split_end());
    for (int32_t head = 0; head < units.count; ++head) {
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
    AttentionUnit unit = make_unit(run, shape, units, operands, work);
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
    AttentionUnit unit = make_unit(run, shape, units, operands, work);
    unit.scratch = scratch + thread * thread_floats;
    kernels.finish_attention(unit, partials + work.partial, work.split_end - work.split_begin);
  });
}

}  // namespace nanoweave
