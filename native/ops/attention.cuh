// What the attention kernels share: their arguments, and one warp's work on one tile of keys in the
// manner of FlashAttention-2 (Dao, 2023): scores on tensor cores, online softmax in base 2,
// weighted values on tensor cores. o [T, Hq·D] = softmax(cap(q·kᵀ·scale))·v over keys max(0, p −
// window + 1)..p of a row at position p; heads / kv_heads query heads share a KV head. A sink is a
// logit more in its head's softmax, without a value: it joins the sum once, after all keys.
#pragma once

#include "cuda/rows.cuh"

namespace nanoweave {

struct AttentionArgs {
  const StepCounts* counts;
  const Segment* segments;      // of the part: the decode or the prefill list
  const int32_t* positions;     // [T]
  const int32_t* kv_slots;      // [T]; < 0: padding, its output is zero
  const int32_t* block_tables;  // [S, block_table_stride]
  int32_t block_table_stride;
  int32_t plan;         // index of StepCounts::plans
  const std::byte* q;   // [T, heads·head_dim]
  const std::byte* kv;  // [blocks, 2, kv_heads, block_size, head_dim]
  const float* sinks;   // [heads] or null
  std::byte* o;         // [T, heads·head_dim]
  DType dtype, kv_dtype;
  int32_t heads, kv_heads, head_dim, block_size;
  int32_t window;  // 0: none
  float scale;
  float softcap;       // 0: none
  float* partials;     // decode: workspace behind the counters
  uint32_t* counters;  // decode: [segments, kv_heads], zero between kernels
};

inline constexpr float kLog2E = 1.4426950408889634f;

// The segment that unit `unit` belongs to: the last one whose first_unit is not beyond it. Called
// by whole warps; `count` ≥ 1.
__device__ __forceinline__ int find_segment(const Segment* segments, int count, int unit) {
  int found = 0;
  for (int base = 0; base < count; base += kWarpSize) {
    const int i = base + lane_index();
    const bool before = i < count && segments[i].first_unit <= unit;
    const uint32_t ballot = __ballot_sync(kFullWarp, before);
    if (ballot == 0) break;
    found = base + 31 - __clz(static_cast<int>(ballot));
  }
  return found;
}

// Rows of the KV cache are numbered [block, 2, kv_head, offset]; this is the first key of a block.
// The host has checked that the numbers fit 32 bits.
__device__ __forceinline__ uint32_t kv_row(const AttentionArgs& args, int32_t block, int kv_head) {
  return (static_cast<uint32_t>(block) * 2 * args.kv_heads + kv_head) * args.block_size;
}
__device__ __forceinline__ uint32_t kv_rows_to_values(const AttentionArgs& args) {
  return static_cast<uint32_t>(args.kv_heads) * args.block_size;
}

// Position of a row, −1 for padding and for rows that are not there.
__device__ __forceinline__ int32_t row_position(const AttentionArgs& args, int32_t row,
                                                bool exists) {
  return exists && args.kv_slots[row] >= 0 ? args.positions[row] : -1;
}

// First key any of the rows from position `first_position` on sees.
__device__ __forceinline__ int32_t first_visible(const AttentionArgs& args,
                                                 int32_t first_position) {
  return args.window > 0 ? max(0, first_position - args.window + 1) : 0;
}

// Rows in shared memory are padded by 16 bytes: the eight rows of a matrix load then start in
// different banks, as kHeadDim / 8 + 1 is odd.
template <int kHeadDim>
inline constexpr int kRowPitch = kHeadDim + 8;

// kRowTiles·16 query rows against tiles of kKeys keys. T is bf16 or f16.
template <typename T, int kHeadDim, int kRowTiles, int kKeys>
struct WarpAttention {
  static constexpr int kPitch = kRowPitch<kHeadDim>;
  static constexpr int kKeyTiles = kKeys / 8;
  static constexpr int kDimTiles = kHeadDim / 8;
  static_assert(kHeadDim % 16 == 0 && (kHeadDim / 8 + 1) % 2 == 1 && kKeys % 16 == 0);

  float out[kRowTiles][kDimTiles][4];  // sums of weights · values; accumulators of 16×8 tiles
  float largest[kRowTiles][2];         // of the scores so far, in base 2; rows g and g + 8
  float total[kRowTiles][2];           // this lane's part of the sum of weights
  int32_t position[kRowTiles][2];      // −1: the row sees nothing

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[r][half] = -INFINITY;
        total[r][half] = 0;
      }
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[r][d][i] = 0;
    }
  }

  // Keys and values: [kKeys, kPitch] in shared memory, of keys first_key... `queries`:
  // [kRowTiles·16, kPitch]. `masked`: some row does not see all of these keys.
  __device__ __forceinline__ void add_tile(const AttentionArgs& args, const T* queries,
                                           const T* keys, const T* values, int32_t first_key,
                                           bool masked) {
    float score[kRowTiles][kKeyTiles][4];
    multiply_keys(queries, keys, score);
    finish_tile(args, score, values, first_key, masked);
  }

  // score = q·kᵀ
  __device__ __forceinline__ void multiply_keys(const T* queries, const T* keys,
                                                float (&score)[kRowTiles][kKeyTiles][4]) const {
    const int lane = lane_index();
    const T* query = queries + (lane & 15) * kPitch + (lane >> 4) * 8;
    const T* key = keys + ((lane & 7) + (lane >> 4) * 8) * kPitch + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[r][k][i] = 0;
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) ptx::load_matrices(a[r], query + r * 16 * kPitch + d);
#pragma unroll
      for (int k = 0; k < kKeyTiles; k += 2) {
        uint32_t b[4];
        ptx::load_matrices(b, key + k * 8 * kPitch + d);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          ptx::multiply_add<T>(score[r][k], a[r], b[0], b[1]);
          ptx::multiply_add<T>(score[r][k + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  // Scale, cap, mask, softmax step, out += weights · values.
  __device__ __forceinline__ void finish_tile(const AttentionArgs& args,
                                              float (&score)[kRowTiles][kKeyTiles][4],
                                              const T* values, int32_t first_key, bool masked) {
    scale_scores(args, score);
    if (masked) mask_scores(args, score, first_key);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float factor[2];
      if (weigh(score[r], r, factor)) rescale(r, factor);
    }
    add_values(score, values);
  }

  // To base 2, so that exp2 finishes the softmax.
  __device__ __forceinline__ void scale_scores(const AttentionArgs& args,
                                               float (&score)[kRowTiles][kKeyTiles][4]) const {
    if (args.softcap == 0) {
      const float factor = args.scale * kLog2E;
      for_scores(score, [&](float s, int, int, int) { return s * factor; });
    } else {
      // cap·tanh(s·scale/cap) with tanh(x) = 1 − 2 / (e^2x + 1)
      const float inner = 2 * kLog2E * args.scale / args.softcap;
      const float outer = args.softcap * kLog2E;
      for_scores(score, [&](float s, int, int, int) {
        return outer * (1.0f - 2.0f * ptx::reciprocal(ptx::exp2(s * inner) + 1.0f));
      });
    }
  }

  __device__ __forceinline__ void mask_scores(const AttentionArgs& args,
                                              float (&score)[kRowTiles][kKeyTiles][4],
                                              int32_t first_key) const {
    const int32_t column = first_key + lane_index() % 4 * 2;
    for_scores(score, [&](float s, int r, int k, int i) {
      const int32_t key = column + k * 8 + i % 2;
      const int32_t p = position[r][i / 2];
      const bool visible = key <= p && (args.window == 0 || key > p - args.window);
      return visible ? s : -INFINITY;
    });
  }

  template <typename Change>
  __device__ __forceinline__ void for_scores(float (&score)[kRowTiles][kKeyTiles][4],
                                             const Change& change) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) score[r][k][i] = change(score[r][k][i], r, k, i);
  }

  // Scores become weights relative to the largest so far. True: it grew for some row of the warp,
  // and the sums need their factors.
  __device__ __forceinline__ bool weigh(float (&score)[kKeyTiles][4], int r, float (&factor)[2]) {
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[r][half];
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k)
        most = fmaxf(most, fmaxf(score[k][2 * half], score[k][2 * half + 1]));
      // The four lanes of a row agree.
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
      const float base = most == -INFINITY ? 0.0f : most;  // a row that sees nothing yet
      factor[half] = ptx::exp2(largest[r][half] - base);
      grows = grows || most != largest[r][half];
      largest[r][half] = most;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          score[k][i] = ptx::exp2(score[k][i] - base);
          sum += score[k][i];
        }
      total[r][half] = total[r][half] * factor[half] + sum;
    }
    return __any_sync(kFullWarp, grows) != 0;
  }
  __device__ __forceinline__ void rescale(int r, const float (&factor)[2]) {
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[r][d][i] *= factor[i / 2];
  }

 private:
  __device__ __forceinline__ void add_values(const float (&weight)[kRowTiles][kKeyTiles][4],
                                             const T* values) {
    const int lane = lane_index();
    const T* value = values + (lane & 15) * kPitch + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < kKeyTiles; k += 2) {
      // The accumulators of two 16×8 tiles are the operand of one 16×16 tile.
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[r][i] = pack2<T>(weight[r][k + i / 2][i % 2 * 2], weight[r][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        ptx::load_matrices_transposed(b, value + k * 8 * kPitch + d * 8);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          ptx::multiply_add<T>(out[r][d], a[r], b[0], b[1]);
          ptx::multiply_add<T>(out[r][d + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

 public:
  // The row's sum of weights, from the four lanes that share it.
  __device__ __forceinline__ float row_total(int r, int half) const {
    float sum = total[r][half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    return sum;
  }
};

// What a row's weighted values are multiplied with in the end; `largest` of its scores, in base 2.
__device__ __forceinline__ float inverse_total(const AttentionArgs& args, int head, float total,
                                               float largest) {
  if (!(total > 0)) return 0;  // padding has seen no key
  if (args.sinks != nullptr) total += ptx::exp2(args.sinks[head] * kLog2E - largest);
  return 1.0f / total;
}

// ---- Prefill ------------------------------------------------------------------------------------

// Positions of rows begin..end that are not padding; 0 and −1 without any. Called by whole warps.
struct PositionRange {
  int32_t lowest, highest;
};
__device__ __forceinline__ PositionRange find_positions(const AttentionArgs& args, int row_begin,
                                                        int row_end) {
  int lowest = INT32_MAX, highest = -1;
  for (int row = row_begin + lane_index(); row < row_end; row += kWarpSize) {
    const int position = row_position(args, row, true);
    if (position < 0) continue;
    lowest = min(lowest, position);
    highest = max(highest, position);
  }
#pragma unroll
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) {
    lowest = min(lowest, __shfl_xor_sync(kFullWarp, lowest, bit));
    highest = max(highest, __shfl_xor_sync(kFullWarp, highest, bit));
  }
  // All lanes have the same: said so that branches on it count as uniform, which wgmma needs.
  return {__shfl_sync(kFullWarp, highest < 0 ? 0 : lowest, 0), __shfl_sync(kFullWarp, highest, 0)};
}

// kPrefillRows rows of a sequence, or what is left of them, and one head.
struct PrefillTile {
  int seq;
  int row_begin, row_end;
  int head, kv_head;
  int first_seen;  // the first key any row sees
  int first_key;   // of the key tile that holds it; a multiple of the key tile
  int end_key;
};

// Tile `index` of num_tiles · heads; kKeys: keys of a key tile. Called by whole warps.
template <int kKeys>
__device__ PrefillTile find_tile(const AttentionArgs& args, const PartPlan& plan, int index) {
  PrefillTile tile;
  // Late tiles see most keys: they go first, so that the last blocks to end are short ones.
  const int number = plan.num_tiles - 1 - index / args.heads;
  tile.head = index % args.heads;
  tile.kv_head = tile.head / (args.heads / args.kv_heads);
  const Segment segment = args.segments[find_segment(args.segments, plan.num_prefill, number)];
  tile.seq = segment.seq;
  tile.row_begin = segment.row_begin + (number - segment.first_unit) * kPrefillRows;
  tile.row_end = min(tile.row_begin + kPrefillRows, segment.row_end);
  const PositionRange positions = find_positions(args, tile.row_begin, tile.row_end);
  tile.end_key = positions.highest + 1;
  tile.first_seen = first_visible(args, positions.lowest);
  tile.first_key = tile.first_seen / kKeys * kKeys;
  return tile;
}

// ---- Launching ----------------------------------------------------------------------------------

// What attention.cu hands to the launchers of the kernels.
struct AttentionShape {
  AttentionArgs constant;  // without pointers
  int32_t which;           // rows the op works on
  int64_t partial_rows;    // of the decode workspace
  int64_t q_rows;          // of the whole buffer
  int64_t kv_blocks;
};

inline AttentionArgs attention_args(const AttentionShape& shape, const CudaRank& rank,
                                    const CudaOperands& at, bool decode) {
  AttentionArgs args = shape.constant;
  args.plan = shape.which;
  args.counts = rank.step.counts;
  args.segments =
      (decode ? rank.step.decode : rank.step.prefill) + int64_t{args.plan} * rank.step.max_seqs;
  args.positions = rank.step.positions;
  args.kv_slots = rank.step.kv_slots;
  args.block_tables = rank.step.block_tables;
  args.block_table_stride = rank.step.block_table_stride;
  args.q = at.in[0];
  args.kv = at.in[1];
  args.sinks = reinterpret_cast<const float*>(at.in[2]);
  args.o = at.out[0];
  return args;
}

// One line per kernel: its launch for all local ranks, its functions, its workspace. Null launch:
// the kernel has no form for this shape.
CudaKernel attention_decode(const AttentionShape& shape);
CudaKernel attention_prefill(const AttentionShape& shape);
CudaKernel attention_prefill_wgmma(const AttentionShape& shape);
CudaKernel attention_generic(const AttentionShape& shape);

}  // namespace nanoweave
