// Latent attention on CUDA: the arguments, and the two ways of multiplying a tile of latent vectors
// with the query heads of a block: tensor cores for 16-bit types, float32 multiply-adds for the
// rest. Both leave a thread's part of the block's [kHeads, L] sums as float[8][4].
#pragma once

#include "cuda/norm_row.cuh"
#include "ops/mla.cuh"

namespace nanoweave {

struct MlaConfig {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kHeads = 16;       // of a block: they share each latent vector it reads
  static constexpr int kSplitKeys = 512;  // at multiples of the position
  static constexpr int kBlocksPerSm = 2;
  static_assert(kMaxLatentDim == kThreads * 2 && kHeads % 16 == 0);  // both mappings of sums
};

struct MlaArgs {
  RowsRef rows;
  const Segment* decode;  // the part's segments, in two lists
  const Segment* prefill;
  const int32_t* positions;     // [T]
  const int32_t* kv_slots;      // [T]; < 0: padding, its output is zero
  const int32_t* block_tables;  // [S, block_table_stride]
  int32_t block_table_stride;
  int32_t plan;               // index of StepCounts::plans
  const std::byte* q_latent;  // [T, heads·L]
  const std::byte* q_rope;    // [T, heads·R]
  const std::byte* cache;     // [blocks, block_size, L+R]
  std::byte* o;               // [T, heads·L]
  DType dtype, cache_dtype;
  LatentSize size;
  int32_t block_size;
  float scale;           // of scores, in base 2
  float* partials;       // workspace: [max_partials, heads, kPartialHead + L]
  uint32_t* counters;    // [split_rows, groups of heads], zero between kernels
  int32_t max_partials;  // results of splits it holds
  int32_t split_rows;    // rows there are counters for
};
inline constexpr int kPartialHead = 4;  // largest score, sum of weights; the rest is not used

// Consecutive keys of one sequence in the cache, for one row.
struct MlaKeys {
  const int32_t* blocks;  // the sequence's
  int end;                // keys from here on are not seen
};

// Elements of key `key`, null where it is not seen.
template <typename T>
__device__ __forceinline__ const T* key_vector(const MlaArgs& args, const MlaKeys& keys, int key) {
  if (key >= keys.end) return nullptr;
  const int64_t slot =
      int64_t{keys.blocks[key / args.block_size]} * args.block_size + key % args.block_size;
  return reinterpret_cast<const T*>(args.cache) + slot * args.size.dim();
}

// Element i of a query of L+R.
__device__ __forceinline__ float query_element(const MlaArgs& args, int64_t vector, int i) {
  const int latent = args.size.latent, rope = args.size.rope;
  return i < latent ? load_element(args.dtype, args.q_latent, vector * latent + i)
                    : load_element(args.dtype, args.q_rope, vector * rope + i - latent);
}

// Calls body(head) for the heads of this warp.
template <typename Body>
__device__ __forceinline__ void for_own_heads(const Body& body) {
  for (int head = warp_index(); head < MlaConfig::kHeads; head += MlaConfig::kWarps) body(head);
}

// Queries and cache of one 16-bit type T, vectors of whole 16 bytes. Scores: a warp takes 16 keys
// and every fourth 16 columns. Values: a warp takes 64 columns. Two tiles in shared memory: one
// arrives while the other is multiplied.
template <typename T>
struct TensorProducts {
  static constexpr int kKeys = 32;
  static constexpr int kParts = 4;  // of a score
  static constexpr int kStages = 2;
  static constexpr int kWeightPitch = kKeys + 8;
  static constexpr int kOwnHeads = 2;
  static_assert(MlaConfig::kHeads == 16 && kKeys / 16 * kParts == MlaConfig::kWarps);

  struct Scratch {
    float scores[kParts][MlaConfig::kHeads][kKeys];
    alignas(16) T weights[MlaConfig::kHeads][kWeightPitch];
  };

  // Rows start in different banks: an odd number of 16-byte pieces.
  static NANOWEAVE_HD int pitch(int dim) { return (dim + 15) / 16 * 16 + 8; }
  static NANOWEAVE_HD int vector_bytes(int dim) {
    return (MlaConfig::kHeads + kStages * kKeys) * pitch(dim) * 2;
  }

  // Where element [i][j] of a thread's sums belongs.
  static __device__ int own_head(int, int j) { return j / 2; }
  static __device__ int head(int own) { return lane_index() / 4 + 8 * own; }
  static __device__ int column(int i, int j) {
    return warp_index() * 64 + i * 8 + lane_index() % 4 * 2 + j % 2;
  }

  __device__ TensorProducts(const MlaArgs& args, unsigned char* vectors, Scratch& scratch)
      : args_(args),
        pitch_(pitch(args.size.dim())),
        queries_(reinterpret_cast<T*>(vectors)),
        tiles_(queries_ + MlaConfig::kHeads * pitch_),
        scratch_(scratch) {}

  __device__ void put_query(int head, int i, float value) {
    queries_[head * pitch_ + i] = round_to<T>(value);
  }

  // begin() starts the first tile of `count`; advance() makes tile `index` readable by all threads.
  __device__ void begin(const MlaKeys& keys, int first_key, int count) {
    keys_ = keys;
    first_key_ = first_key;
    count_ = count;
    fetch(0);
  }
  __device__ void advance(int index) {
    ptx::wait_for_copies<0>();
    __syncthreads();  // the tile is there; all are done with the one before
    fetch(index + 1);
  }

  __device__ void multiply_keys(int index) {
    const int lane = lane_index(), keys16 = warp_index() % 2 * 16, part = warp_index() / 2;
    const T* query = queries_ + (lane & 15) * pitch_ + (lane >> 4) * 8;
    const T* key =
        tile(index) + (keys16 + (lane & 7) + (lane >> 4) * 8) * pitch_ + (lane >> 3 & 1) * 8;
    float score[2][4] = {};
    for (int d = part * 16; d < args_.size.dim(); d += kParts * 16) {
      uint32_t a[4], b[4];
      ptx::load_matrices(a, query + d);
      ptx::load_matrices(b, key + d);
      ptx::multiply_add<T>(score[0], a, b[0], b[1]);
      ptx::multiply_add<T>(score[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        scratch_.scores[part][lane / 4 + 8 * (j / 2)][keys16 + n * 8 + lane % 4 * 2 + j % 2] =
            score[n][j];
  }
  __device__ float score(int head, int key) const {
    float sum = scratch_.scores[0][head][key];
#pragma unroll
    for (int part = 1; part < kParts; ++part) sum += scratch_.scores[part][head][key];
    return sum;
  }
  __device__ void put_weight(int head, int key, float weight) {
    scratch_.weights[head][key] = round_to<T>(weight);
  }

  __device__ void add_values(int index, float (&sums)[8][4]) {
    const int lane = lane_index(), first = warp_index() * 64;
    const T* value = tile(index) + (lane & 15) * pitch_ + (lane >> 4) * 8 + first;
#pragma unroll
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t a[4];
      ptx::load_matrices(a, &scratch_.weights[lane & 15][(lane >> 4) * 8 + k]);
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        if (first + i * 8 >= args_.size.latent) break;  // no such columns
        uint32_t b[4];
        ptx::load_matrices_transposed(b, value + k * pitch_ + i * 8);
        ptx::multiply_add<T>(sums[i], a, b[0], b[1]);
        ptx::multiply_add<T>(sums[i + 1], a, b[2], b[3]);
      }
    }
  }

 private:
  __device__ T* tile(int index) { return tiles_ + index % kStages * kKeys * pitch_; }

  // Every call is one group, also past the end. Keys that are not seen are zero: their weights are,
  // but 0·NaN would not be.
  __device__ void fetch(int index) {
    if (index < count_)
      for (int key = warp_index(); key < kKeys; key += MlaConfig::kWarps) {
        const T* from = key_vector<T>(args_, keys_, first_key_ + index * kKeys + key);
        const bool seen = from != nullptr;
        if (!seen) from = reinterpret_cast<const T*>(args_.cache);
        T* to = tile(index) + key * pitch_;
        for (int i = lane_index() * 8; i < args_.size.dim(); i += kWarpSize * 8)
          ptx::copy_async16(to + i, from + i, seen ? 16 : 0);
      }
    ptx::commit_copies();
  }

  const MlaArgs& args_;
  const int pitch_;
  T* queries_;  // [kHeads, pitch]
  T* tiles_;    // [kStages, kKeys, pitch]
  Scratch& scratch_;
  MlaKeys keys_{};
  int first_key_ = 0, count_ = 0;
};

// Queries and cache of any types, kWidth elements of K at once from the cache. Scores: eight lanes
// share the dot products of 4 heads and 2 keys. Values: a thread takes 8 heads and 4 columns.
template <typename K, int kWidth>
struct FloatProducts {
  static constexpr int kKeys = 16;
  static constexpr int kSlices = 8;
  static constexpr int kScoreHeads = 4, kScoreKeys = 2;  // of a thread
  static constexpr int kOwnHeads = 8;
  static constexpr int kHeads = MlaConfig::kHeads;
  static_assert(kHeads / kScoreHeads * (kKeys / kScoreKeys) * kSlices == MlaConfig::kThreads);

  struct Scratch {
    float scores[kHeads][kKeys + 1];
    alignas(16) float weights[kKeys][kHeads];
  };

  static NANOWEAVE_HD int pitch(int dim) {
    return (dim + kSlices * 4 - 1) / (kSlices * 4) * (kSlices * 4);
  }
  static NANOWEAVE_HD int vector_bytes(int dim) { return (kHeads + kKeys) * pitch(dim) * 4; }

  static __device__ int own_head(int i, int) { return i; }
  static __device__ int head(int own) {
    return static_cast<int>(threadIdx.x) / (MlaConfig::kThreads / 2) * 8 + own;
  }
  static __device__ int column(int, int j) {
    return static_cast<int>(threadIdx.x) % (MlaConfig::kThreads / 2) * 4 + j;
  }

  __device__ FloatProducts(const MlaArgs& args, unsigned char* vectors, Scratch& scratch)
      : args_(args),
        pitch_(pitch(args.size.dim())),
        queries_(reinterpret_cast<float*>(vectors)),
        tile_(queries_ + kHeads * pitch_),
        scratch_(scratch) {}

  __device__ void put_query(int head, int i, float value) { queries_[head * pitch_ + i] = value; }

  __device__ void begin(const MlaKeys& keys, int first_key, int) {
    keys_ = keys;
    first_key_ = first_key;
  }
  __device__ void advance(int index) {
    __syncthreads();  // all are done with the tile before
    for (int key = warp_index(); key < kKeys; key += MlaConfig::kWarps) {
      const K* from = key_vector<K>(args_, keys_, first_key_ + index * kKeys + key);
      float* to = tile_ + key * pitch_;
      for (int i = lane_index() * kWidth; i < args_.size.dim(); i += kWarpSize * kWidth) {
        float values[kWidth] = {};
        if (from != nullptr) load_vector<K, kWidth>(from + i, values);
        put_floats(to + i, values);
      }
    }
    __syncthreads();  // the tile is there
  }

  __device__ void multiply_keys(int) {
    const int slice = static_cast<int>(threadIdx.x) % kSlices;
    const int place = static_cast<int>(threadIdx.x) / kSlices;
    const int head = place % (kHeads / kScoreHeads) * kScoreHeads;
    const int key = place / (kHeads / kScoreHeads) * kScoreKeys;
    float sums[kScoreHeads][kScoreKeys] = {};
    for (int d = slice * 4; d < pitch_; d += kSlices * 4) {
      float q[kScoreHeads][4], k[kScoreKeys][4];
#pragma unroll
      for (int i = 0; i < kScoreHeads; ++i)
        load_vector<float, 4>(queries_ + (head + i) * pitch_ + d, q[i]);
#pragma unroll
      for (int j = 0; j < kScoreKeys; ++j)
        load_vector<float, 4>(tile_ + (key + j) * pitch_ + d, k[j]);
#pragma unroll
      for (int i = 0; i < kScoreHeads; ++i)
#pragma unroll
        for (int j = 0; j < kScoreKeys; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[i][j] += q[i][e] * k[j][e];
    }
#pragma unroll
    for (int i = 0; i < kScoreHeads; ++i)
#pragma unroll
      for (int j = 0; j < kScoreKeys; ++j) {
        float sum = sums[i][j];
#pragma unroll
        for (int bit = kSlices / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bit);
        if (slice == i * kScoreKeys + j) scratch_.scores[head + i][key + j] = sum;
      }
  }
  __device__ float score(int head, int key) const { return scratch_.scores[head][key]; }
  __device__ void put_weight(int head, int key, float weight) {
    scratch_.weights[key][head] = weight;
  }

  __device__ void add_values(int, float (&sums)[8][4]) {
    if (column(0, 0) >= args_.size.latent) return;
    for (int key = 0; key < kKeys; ++key) {
      float weights[8], values[4];
      const float* from = &scratch_.weights[key][head(0)];
      load_vector<float, 4>(tile_ + key * pitch_ + column(0, 0), values);
      get_floats(from, weights);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += weights[i] * values[j];
    }
  }

 private:
  const MlaArgs& args_;
  const int pitch_;
  float* queries_;  // [kHeads, pitch]
  float* tile_;     // [kKeys, pitch]
  Scratch& scratch_;
  MlaKeys keys_{};
  int first_key_ = 0;
};

}  // namespace nanoweave
