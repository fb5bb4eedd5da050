// The attention unit over Simd: scores of all rows against a tile of 64 transposed keys, online
// softmax (Milakov and Gimelshein, 2018), weighted sum of the tile's values. Both products are
// small matrix products of float32 panels that stay in the L1 and L2 caches. Included after
// simd_math.h by each vector_kernels_<isa>.cc; in an unnamed namespace for the reason given there.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/attention.h"

namespace nanoweave {
namespace {

constexpr float kNoScore = -__builtin_inff();

// One step of a product. Elements of Pairs are two bf16 that share the 32 bits of a float.
struct Floats {
  static Vec step(Vec a, Vec b, Vec sum) { return Simd::fma(a, b, sum); }
};
template <class S>
struct Pairs {
  static Vec step(Vec a, Vec b, Vec sum) { return S::dot_pairs(a, b, sum); }
};

// c[r][·] = (kResume ? c[r][·] : 0) + Σ over k, ascending, of a[r][k] · b[k][·].
struct Product {
  const float* a;  // [rows, a_stride]
  int64_t a_stride;
  int64_t depth;   // k
  const float* b;  // [depth, b_stride]
  int64_t b_stride;
  float* c;  // [rows, c_stride]
  int64_t c_stride;
};

template <class Math, bool kResume, int kRows, int kVecs>
void product_block(const Product& p, const float* a, const float* b, float* c) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      sums[r][v] = kResume ? Simd::load(c + r * p.c_stride + v * kLanes) : Simd::zero();
  for (int64_t k = 0; k < p.depth; ++k, ++a, b += p.b_stride) {
    Vec panel[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) panel[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = Simd::set(a[r * p.a_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = Math::step(value, panel[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) Simd::store(c + r * p.c_stride + v * kLanes, sums[r][v]);
}

// Few rows take more vectors each, so that enough sums are in flight.
constexpr int vecs_for(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : Simd::kTileVecs; }

// All `vecs` vectors of kRows rows, widest blocks first.
template <class Math, bool kResume, int kRows, int kVecs = vecs_for(kRows)>
void product_rows(const Product& p, const float* a, const float* b, float* c, int64_t vecs) {
  for (; vecs >= kVecs; vecs -= kVecs, b += kVecs * kLanes, c += kVecs * kLanes)
    product_block<Math, kResume, kRows, kVecs>(p, a, b, c);
  if constexpr (kVecs > 1)
    if (vecs > 0) product_rows<Math, kResume, kRows, kVecs / 2>(p, a, b, c, vecs);
}

template <class Math, bool kResume, int kRows = Simd::kTileRows>
void product_dispatch(const Product& p, const float* a, float* c, int64_t vecs, int64_t rows) {
  if constexpr (kRows > 1)
    if (rows < kRows) return product_dispatch<Math, kResume, kRows - 1>(p, a, c, vecs, rows);
  product_rows<Math, kResume, kRows>(p, a, p.b, c, vecs);
}

template <class Math, bool kResume>
void multiply(const Product& p, int64_t rows, int64_t vecs) {
  // Blocks of equal height: 7 rows are 4 + 3, not 6 + 1.
  const int64_t blocks = (rows + Simd::kTileRows - 1) / Simd::kTileRows;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = rows * i / blocks;
    const int64_t end = rows * (i + 1) / blocks;
    product_dispatch<Math, kResume>(p, p.a + begin * p.a_stride, p.c + begin * p.c_stride, vecs,
                                    end - begin);
  }
}

// A unit's scratch, in floats, each piece a multiple of a cache line.
struct AttentionScratch {
  float* queries;  // [rows, key_dim] floats or [rows, key_dim / 2] pairs
  float* scores;   // [rows, kTileKeys], then the weights
  float* keys;     // [key_dim, kTileKeys] floats or [key_dim / 2, kTileKeys] pairs
  float* values;   // [kTileKeys, value_stride]
  AttentionState split;
  AttentionState whole;
};

AttentionScratch carve(float* scratch, int64_t rows, int64_t key_dim, int64_t value_dim) {
  const auto take = [&](int64_t count) {
    float* piece = scratch;
    scratch += (count + 15) / 16 * 16;
    return piece;
  };
  const int64_t stride = attention_value_stride(value_dim);
  const auto take_state = [&] {
    AttentionState state;
    state.values = take(rows * stride);
    state.largest = take(rows);
    state.total = take(rows);
    return state;
  };
  AttentionScratch s;
  s.queries = take(rows * key_dim);
  s.scores = take(rows * kTileKeys);
  s.keys = take(key_dim * kTileKeys);
  s.values = take(kTileKeys * stride);
  s.split = take_state();
  s.whole = take_state();
  return s;
}

void clear(const AttentionState& state, int64_t rows, int64_t stride) {
  std::memset(state.values, 0, static_cast<size_t>(rows * stride) * sizeof(float));
  std::fill_n(state.largest, rows, kNoScore);
  std::fill_n(state.total, rows, 0.0f);
}

// bf16 queries and keys are multiplied in pairs where the machine can: products of bf16 are exact
// in float32, so this loses nothing.
bool uses_pairs(const AttentionUnit& u) {
  return Simd::kHasPairs && u.dtype == DType::kBf16 && u.kv.dtype() == DType::kBf16 &&
         u.queries[0].dim % 2 == 0 && u.queries[1].dim % 2 == 0;
}

// `count` elements of a query.
void load_query(const AttentionUnit& u, const std::byte* source, int64_t count, float* out) {
  if (uses_pairs(u)) {
    std::memcpy(out, source, static_cast<size_t>(count) * sizeof(bf16));
    return;
  }
  with_elements(u.dtype, source, [&](const auto* p) {
    for_vectors(count, [&](int64_t i, int64_t n) { store_n(out + i, load_n(p + i, n), n); });
  });
}

void load_queries(const AttentionUnit& u, float* out) {
  const int64_t per_float = uses_pairs(u) ? 2 : 1;
  const int64_t element = dtype_bytes(u.dtype);
  for (int64_t t = 0; t < u.tokens; ++t)
    for (int64_t g = 0; g < u.group; ++g)
      for (const QueryPiece& piece : u.queries) {
        if (piece.dim == 0) continue;
        load_query(u, piece.data + t * piece.token_stride + g * piece.dim * element, piece.dim,
                   out);
        out += piece.dim / per_float;
      }
}

// Where the keys (values) of positions [first, first + count) of a head lie.
struct TileRows {
  const std::byte* keys[kTileKeys];
  const std::byte* values[kTileKeys];
};

void find_tile(const AttentionUnit& u, int64_t first, int64_t count, TileRows& rows) {
  const int64_t row_bytes = u.kv.head_dim * dtype_bytes(u.kv.dtype());
  for (int64_t j = 0; j < count;) {
    const int64_t position = first + j;
    const int64_t block = u.blocks[position / u.kv.block_size];
    int64_t offset = position % u.kv.block_size;
    const std::byte* keys = u.kv.keys(block, u.kv_head);
    const std::byte* values = u.kv.values(block, u.kv_head);
    for (; offset < u.kv.block_size && j < count; ++offset, ++j) {
      rows.keys[j] = keys + offset * row_bytes;
      rows.values[j] = values + offset * row_bytes;
    }
  }
}

// out[d][j] = key j's element d; zero for j ≥ count.
template <typename T>
void transpose_keys(const TileRows& rows, int64_t count, int64_t head_dim, float* out) {
  for (int64_t j = 0; j < kTileKeys; j += kLanes)
    for_vectors(head_dim, [&](int64_t d, int64_t n) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        square[lane] = j + lane < count
                           ? load_n(reinterpret_cast<const T*>(rows.keys[j + lane]) + d, n)
                           : Simd::zero();
      Simd::transpose(square);
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        if (lane < n) Simd::store(out + (d + lane) * kTileKeys + j, square[lane]);
    });
}

template <typename T>
void widen_values(const TileRows& rows, int64_t count, int64_t value_dim, float* out) {
  const int64_t stride = attention_value_stride(value_dim);
  for (int64_t j = 0; j < count; ++j, out += stride) {
    const T* source = reinterpret_cast<const T*>(rows.values[j]);
    for_vectors(value_dim,
                [&](int64_t d, int64_t n) { Simd::store(out + d, load_n(source + d, n)); });
    for (int64_t d = (value_dim + kLanes - 1) / kLanes * kLanes; d < stride; d += kLanes)
      Simd::store(out + d, Simd::zero());
  }
}

void load_tile(const AttentionUnit& u, const TileRows& rows, int64_t count,
               const AttentionScratch& s) {
  const int64_t head_dim = u.kv.head_dim;
  with_elements(u.kv.dtype(), u.kv.kv.data, [&](const auto* typed) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(typed)>>;
    if (uses_pairs(u))  // moved as 32 bits
      transpose_keys<float>(rows, count, head_dim / 2, s.keys);
    else
      transpose_keys<T>(rows, count, head_dim, s.keys);
    widen_values<T>(rows, count, u.value_dim, s.values);
  });
}

// scores[row][j] = query row · key j. A template so that pairs are compiled only where they exist.
template <class S>
void multiply_keys(const AttentionUnit& u, const AttentionScratch& s) {
  const int64_t depth = uses_pairs(u) ? u.kv.head_dim / 2 : u.kv.head_dim;
  const Product product{.a = s.queries,
                        .a_stride = depth,
                        .depth = depth,
                        .b = s.keys,
                        .b_stride = kTileKeys,
                        .c = s.scores,
                        .c_stride = kTileKeys};
  const int64_t rows = u.tokens * u.group;
  if constexpr (S::kHasPairs)
    if (uses_pairs(u)) return multiply<Pairs<S>, false>(product, rows, kTileKeys / kLanes);
  multiply<Floats, false>(product, rows, kTileKeys / kLanes);
}

// Asks for a tile's keys and values ahead of their use: with few rows the loads are the cost.
void prefetch_tile(const TileRows& rows, int64_t count, int64_t row_bytes) {
  for (int64_t j = 0; j < count; ++j)
    for (int64_t byte = 0; byte < row_bytes; byte += 64) {
      __builtin_prefetch(rows.keys[j] + byte, 0, 2);
      if (rows.values[j] != rows.keys[j]) __builtin_prefetch(rows.values[j] + byte, 0, 2);
    }
}

float exp_of(float x) {
  float lanes[kLanes];
  Simd::store(lanes, exp(Simd::set(x)));
  return lanes[0];
}

// Scales and caps the scores of one row and turns them into weights e^(s − m), m the largest so
// far, zero outside columns [begin, end); updates m and the sum of weights. Returns the factor that
// earlier weighted values must be multiplied with.
float weigh(float* scores, int64_t begin, int64_t end, float scale, float softcap, float& largest,
            float& total) {
  if (begin >= end) {
    std::memset(scores, 0, kTileKeys * sizeof(float));
    return 1;
  }
  Vec best = Simd::set(kNoScore);
  const bool masked = begin > 0 || end < kTileKeys;
  const Vec low = Simd::set(static_cast<float>(begin));
  const Vec high = Simd::set(static_cast<float>(end));
  for (int64_t j = 0; j < kTileKeys; j += kLanes) {
    Vec score = Simd::mul(Simd::load(scores + j), Simd::set(scale));
    if (softcap > 0)
      score = Simd::mul(tanh(Simd::mul(score, Simd::set(1.0f / softcap))), Simd::set(softcap));
    if (masked) {
      const Vec column = Simd::ramp(static_cast<float>(j));
      score = Simd::where_less(column, high, score, Simd::set(kNoScore));
      score = Simd::where_less(column, low, Simd::set(kNoScore), score);
    }
    Simd::store(scores + j, score);
    best = Simd::max(score, best);
  }
  const float previous = largest;
  largest = std::max(largest, Simd::largest(best));
  const Vec shift = Simd::set(largest);
  Vec sums = Simd::zero();
  for (int64_t j = 0; j < kTileKeys; j += kLanes) {
    const Vec weight = exp(Simd::sub(Simd::load(scores + j), shift));
    Simd::store(scores + j, weight);
    sums = Simd::add(sums, weight);
  }
  const float factor = previous == largest ? 1.0f : exp_of(previous - largest);
  total = total * factor + Simd::sum(sums);
  return factor;
}

void scale_values(float* values, float factor, int64_t stride) {
  const Vec by = Simd::set(factor);
  for (int64_t d = 0; d < stride; d += kLanes)
    Simd::store(values + d, Simd::mul(Simd::load(values + d), by));
}

// Columns [begin, end) of a tile; none: {0, 0}.
struct Columns {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Columns&) const = default;
};

// What token t sees of the `count` keys from position `tile` on.
Columns visible(const AttentionUnit& u, int64_t t, int64_t tile, int64_t count) {
  const int64_t position = u.slots[t] < 0 ? -1 : u.positions[t];
  const int64_t begin = u.window > 0 ? std::max<int64_t>(0, position - u.window + 1 - tile) : 0;
  const int64_t end = std::min(count, position + 1 - tile);
  return begin < end ? Columns{begin, end} : Columns{};
}

bool all_finite(const float* values, int64_t count) {
  constexpr int kSums = 4;  // in flight
  Vec sums[kSums] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes)
#pragma GCC unroll 4
    for (int v = 0; v < kSums; ++v)
      sums[v] = Simd::fma(Simd::load(values + i + v * kLanes), Simd::zero(), sums[v]);
  for (; i < count; i += kLanes) sums[0] = Simd::fma(Simd::load(values + i), Simd::zero(), sums[0]);
  // 0 · x is 0, or NaN for an infinity or NaN.
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3]))) == 0;
}

// Adds the tile's weighted values. A row's weight is 0 for keys it does not see, and 0 times an
// infinity or NaN there would spoil the row; so where rows see different keys and not all values
// are finite, each token multiplies its own keys only. Finite values give the same bits either way.
void multiply_values(const AttentionUnit& u, int64_t tile, int64_t count, const AttentionScratch& s,
                     const AttentionState& state) {
  const int64_t stride = attention_value_stride(u.value_dim);
  const auto multiply_rows = [&](int64_t row, int64_t rows, Columns keys) {
    if (keys.begin == keys.end) return;
    multiply<Floats, true>({.a = s.scores + row * kTileKeys + keys.begin,
                            .a_stride = kTileKeys,
                            .depth = keys.end - keys.begin,
                            .b = s.values + keys.begin * stride,
                            .b_stride = stride,
                            .c = state.values + row * stride,
                            .c_stride = stride},
                           rows, stride / kLanes);
  };
  const Columns first = visible(u, 0, tile, count);
  Columns any = first;  // what at least one token sees
  bool alike = true;
  for (int64_t t = 1; t < u.tokens; ++t) {
    const Columns keys = visible(u, t, tile, count);
    alike = alike && keys == first;
    any = {std::min(any.begin, keys.begin), std::max(any.end, keys.end)};
  }
  if (alike || all_finite(s.values + any.begin * stride, (any.end - any.begin) * stride))
    return multiply_rows(0, u.tokens * u.group, any);
  for (int64_t t = 0; t < u.tokens; ++t)
    multiply_rows(t * u.group, u.group, visible(u, t, tile, count));
}

// One split of keys [first, end) for all rows of the unit.
void attend_split(const AttentionUnit& u, int64_t first, int64_t end, const AttentionScratch& s,
                  const AttentionState& state) {
  const int64_t rows = u.tokens * u.group;
  const int64_t stride = attention_value_stride(u.value_dim);
  const int64_t row_bytes = u.kv.head_dim * dtype_bytes(u.kv.dtype());
  clear(state, rows, stride);
  TileRows tiles[2];  // of this tile and the next
  int current = 0;
  find_tile(u, first / kTileKeys * kTileKeys,
            std::min(kTileKeys, end - first / kTileKeys * kTileKeys), tiles[current]);
  for (int64_t tile = first / kTileKeys * kTileKeys; tile < end; tile += kTileKeys) {
    const int64_t count = std::min(kTileKeys, end - tile);
    load_tile(u, tiles[current], count, s);
    current ^= 1;
    if (const int64_t ahead = std::min(kTileKeys, end - tile - kTileKeys); ahead > 0) {
      find_tile(u, tile + kTileKeys, ahead, tiles[current]);
      prefetch_tile(tiles[current], ahead, row_bytes);
    }
    multiply_keys<Simd>(u, s);
    for (int64_t t = 0; t < u.tokens; ++t) {
      const Columns keys = visible(u, t, tile, count);
      for (int64_t row = t * u.group; row < (t + 1) * u.group; ++row) {
        const float factor = weigh(s.scores + row * kTileKeys, keys.begin, keys.end, u.scale,
                                   u.softcap, state.largest[row], state.total[row]);
        if (factor != 1) scale_values(state.values + row * stride, factor, stride);
      }
    }
    multiply_values(u, tile, count, s, state);
  }
}

// whole ← whole merged with the next split.
void merge(const AttentionState& whole, const AttentionState& split, int64_t rows, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) {
    if (split.total[row] == 0) continue;  // the row sees no key of this split
    float* values = whole.values + row * stride;
    const float* added = split.values + row * stride;
    if (whole.total[row] == 0) {
      std::memcpy(values, added, static_cast<size_t>(stride) * sizeof(float));
      whole.largest[row] = split.largest[row];
      whole.total[row] = split.total[row];
      continue;
    }
    const float largest = std::max(whole.largest[row], split.largest[row]);
    const float old_factor = exp_of(whole.largest[row] - largest);
    const float new_factor = exp_of(split.largest[row] - largest);
    const Vec by = Simd::set(new_factor);
    scale_values(values, old_factor, stride);
    for (int64_t d = 0; d < stride; d += kLanes)
      Simd::store(values + d, Simd::fma(Simd::load(added + d), by, Simd::load(values + d)));
    whole.largest[row] = largest;
    whole.total[row] = whole.total[row] * old_factor + split.total[row] * new_factor;
  }
}

// What a row's weighted values are divided by. The head's sink joins once, after all keys.
float final_total(const AttentionUnit& u, int64_t head, const AttentionState& state, int64_t row) {
  const float total = state.total[row];
  if (total == 0) return 1;  // a padding row has seen no key and becomes zero
  return u.sinks == nullptr ? total : total + exp_of(u.sinks[head] - state.largest[row]);
}

void store_outputs(const AttentionUnit& u, const AttentionState& state) {
  const int64_t stride = attention_value_stride(u.value_dim);
  for (int64_t t = 0; t < u.tokens; ++t)
    with_elements(u.dtype, u.outputs + t * u.output_stride, [&](auto* out) {
      for (int64_t g = 0; g < u.group; ++g, out += u.value_dim) {
        const int64_t row = t * u.group + g;
        const Vec total = Simd::set(final_total(u, g, state, row));
        for_vectors(u.value_dim, [&](int64_t d, int64_t n) {
          store_n(out + d, Simd::div(Simd::load(state.values + row * stride + d), total), n);
        });
      }
    });
}

void attend(const AttentionUnit& u) {
  const int64_t rows = u.tokens * u.group;
  const int64_t stride = attention_value_stride(u.value_dim);
  const AttentionScratch s = carve(u.scratch, rows, u.kv.head_dim, u.value_dim);
  load_queries(u, s.queries);
  if (u.outputs != nullptr) clear(s.whole, rows, stride);
  for (int64_t split = u.split_begin; split < u.split_end; ++split) {
    const int64_t first = std::max(u.first_key, split * kSplitKeys);
    const int64_t end = std::min(u.end_key, (split + 1) * kSplitKeys);
    if (u.outputs == nullptr) {
      attend_split(u, first, end, s, u.partials[split - u.split_begin]);
    } else {
      attend_split(u, first, end, s, s.split);
      merge(s.whole, s.split, rows, stride);
    }
  }
  if (u.outputs != nullptr) store_outputs(u, s.whole);
}

void finish_attention(const AttentionUnit& u, const AttentionState* partials,
                      int64_t num_partials) {
  const int64_t rows = u.tokens * u.group;
  const int64_t stride = attention_value_stride(u.value_dim);
  const AttentionState whole = carve(u.scratch, rows, u.kv.head_dim, u.value_dim).whole;
  clear(whole, rows, stride);
  for (int64_t i = 0; i < num_partials; ++i) merge(whole, partials[i], rows, stride);
  store_outputs(u, whole);
}

}  // namespace
}  // namespace nanoweave
