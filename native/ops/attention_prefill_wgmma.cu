// Prefill attention on Hopper's tensor cores (sm_90a), in the manner of FlashAttention-3 (Shah and
// others, 2024): tiles of kPrefillRows rows of a sequence, one query head, a warpgroup for each 64
// of them and one warp that fetches. Keys and values of the paged cache arrive by the copy engine,
// a box per 16 keys and 64 columns, in rings of kStages key tiles; scores = q·kᵀ and out += w·v are
// warpgroup products, weights stay in registers. Scores of a tile are computed while the values of
// the one before are added, and its softmax runs beside them.
//
// Who waits for whom: full barriers count the bytes of copies; empty ones the eight multiplying
// warps, each once its products have read the buffer. Head sizes of no whole 64 columns have zeros
// behind (queries: what follows in the row, which meets no key column). Values outside of what the
// tile sees are zeroed before use: their weights are zero, but 0·NaN would not be.
//
// Every row meets its keys in the same tiles in the same order, whatever the tile of rows it is in.
// Floor: 4·D flops per (row, visible key, head); keys and values come from L2 for all but the first
// head that shares them. Stays in the rank. Not yet run on a GPU.
#include "cuda/quad.cuh"
#include "cuda/wgmma.cuh"
#include "ops/attention.cuh"

namespace nanoweave {

namespace {

template <int kHeadDim_>
struct WgmmaPrefillConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kChunks = (kHeadDim + 63) / 64;  // of 64 columns
  static constexpr int kColumns = kChunks * 64;
  static constexpr int kKeys = kHeadDim <= 128 ? 128 : 64;
  static constexpr int kStages = kHeadDim <= 64 ? 4 : 2;
  static constexpr int kGroups = kPrefillRows / 64;  // that multiply
  static constexpr int kThreads = 128 * (1 + kGroups);
  static constexpr int kBoxKeys = 16;
  static constexpr int kBoxBytes = kBoxKeys * 128;
  static constexpr int kBoxes = kKeys / kBoxKeys * kChunks;  // of a tile of keys, a lane each
  static_assert(kGroups == 2, "the split of registers below");
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= kColumns && kBoxes <= kWarpSize);
  static_assert(kBoxBytes % ptx::kSwizzleBytes == 0);
};

// Registers: a block keeps what it was launched with, 384 threads of 168; asking for more would
// wait for ever.
constexpr int kFetchRegisters = 24, kMultiplyRegisters = 240;
static_assert(128 * (kFetchRegisters + 2 * kMultiplyRegisters) <= 384 * 168);

// Operands lie in chunks of 64 columns, [chunk][row][64].
template <typename T, typename Config>
struct WgmmaPrefillShared {
  T queries[Config::kChunks][kPrefillRows][64];
  T keys[Config::kStages][Config::kChunks][Config::kKeys][64];
  T values[Config::kStages][Config::kChunks][Config::kKeys][64];
  ptx::BlockBarrier queries_full, queries_empty;
  ptx::BlockBarrier keys_full[Config::kStages], keys_empty[Config::kStages];
  ptx::BlockBarrier values_full[Config::kStages], values_empty[Config::kStages];
  uint32_t given_up;  // 1: a wait did not end
};
template <typename Config>
constexpr int kPrefillSharedBytes = sizeof(WgmmaPrefillShared<bf16, Config>) + ptx::kSwizzleBytes;

struct WgmmaPrefillArgs {
  TensorMap q;   // [q_rows, heads·head_dim], boxes of kPrefillRows × 64
  TensorMap kv;  // [blocks·2·kv_heads, block_size, head_dim], boxes of 1 × 16 × 64
  AttentionArgs attention;
  BlockWatch watch;
};

// ---- Fetching -----------------------------------------------------------------------------------

// One warp.
template <typename T, typename Config>
class PrefillFetcher {
 public:
  using Shared = WgmmaPrefillShared<T, Config>;

  __device__ PrefillFetcher(const WgmmaPrefillArgs& args, Shared& shared)
      : args_(args), attention_(args.attention), shared_(shared) {}

  __device__ void fetch_tile(const PrefillTile& tile) {
    fetch_queries(tile);
    for (int key = tile.first_key; key < tile.end_key && !stopped_; key += Config::kKeys) {
      fetch_boxes(tile, key, 0, shared_.keys[ring_.stage][0][0], shared_.keys_full[ring_.stage],
                  shared_.keys_empty[ring_.stage]);
      fetch_boxes(tile, key, attention_.kv_heads, shared_.values[ring_.stage][0][0],
                  shared_.values_full[ring_.stage], shared_.values_empty[ring_.stage]);
      ring_.advance();
    }
  }

 private:
  // All lanes. Afterwards they agree whether to stop.
  __device__ __forceinline__ void wait(ptx::BlockBarrier& barrier, uint32_t parity) {
    ptx::wait_for(barrier, parity, args_.watch, shared_.given_up);
    const uint32_t given_up = *static_cast<const volatile uint32_t*>(&shared_.given_up);
    stopped_ = __any_sync(kFullWarp, given_up != 0) != 0;
  }

  __device__ void fetch_queries(const PrefillTile& tile) {
    if (stopped_) return;
    wait(shared_.queries_empty, queries_.parity ^ 1);
    queries_.advance();
    if (stopped_ || lane_index() != 0) return;
    ptx::arrive_and_expect(shared_.queries_full, Config::kChunks * kPrefillRows * 128);
    for (int chunk = 0; chunk < Config::kChunks; ++chunk)
      ptx::copy_box(shared_.queries[chunk], args_.q, shared_.queries_full,
                    tile.head * Config::kHeadDim + chunk * 64, tile.row_begin);
  }

  // Each lane brings a box of 16 keys and 64 columns, where some row of the tile sees one of them.
  // `plane`: distance of these heads from the keys' in the cache.
  __device__ void fetch_boxes(const PrefillTile& tile, int key, int plane, T* to,
                              ptx::BlockBarrier& full, ptx::BlockBarrier& empty) {
    constexpr int kBoxRows = Config::kKeys / Config::kBoxKeys;
    const int box = lane_index() % kBoxRows, chunk = lane_index() / kBoxRows;
    const int first = key + box * Config::kBoxKeys;
    const bool wanted = lane_index() < Config::kBoxes && first < tile.end_key &&
                        first + Config::kBoxKeys > tile.first_seen;
    const int boxes = __popc(__ballot_sync(kFullWarp, wanted));
    wait(empty, ring_.parity ^ 1);
    if (stopped_) return;
    if (lane_index() == 0) ptx::arrive_and_expect(full, boxes * Config::kBoxBytes);
    __syncwarp();  // the bytes are expected before they come
    if (!wanted) return;
    const int32_t block =
        attention_.block_tables[int64_t{tile.seq} * attention_.block_table_stride +
                                first / attention_.block_size];
    ptx::copy_box(to + (chunk * Config::kKeys + box * Config::kBoxKeys) * 64, args_.kv, full,
                  chunk * 64, first % attention_.block_size,
                  block * 2 * attention_.kv_heads + plane + tile.kv_head);
  }

  const WgmmaPrefillArgs& args_;
  const AttentionArgs& attention_;
  Shared& shared_;
  bool stopped_ = false;  // a wait of the block did not end
  ptx::RingPlace<1> queries_;
  ptx::RingPlace<Config::kStages> ring_;
};

// ---- Multiplying --------------------------------------------------------------------------------

// A warpgroup: 64 rows of the tile.
template <typename T, typename Config>
class PrefillGroup {
 public:
  using Shared = WgmmaPrefillShared<T, Config>;
  using State = WarpAttention<T, Config::kColumns, 1, Config::kKeys>;
  static constexpr int kKeyTiles = Config::kKeys / 8;
  static constexpr int kSteps = Config::kKeys / 16;  // of k in weights · values

  __device__ PrefillGroup(const WgmmaPrefillArgs& args, Shared& shared, int group)
      : args_(args.attention), watch_(args.watch), shared_(shared), group_(group) {}

  __device__ void attend(const PrefillTile& tile) {
    tile_ = &tile;
    const int begin = tile.row_begin + group_ * 64, end = min(begin + 64, tile.row_end);
    const PositionRange positions = find_positions(args_, begin, end);
    // Key tiles of this group, of those of the tile.
    const int end_key = positions.highest + 1;
    const int first_key =
        end_key == 0 ? tile.end_key
                     : first_visible(args_, positions.lowest) / Config::kKeys * Config::kKeys;
    State state;
    state.reset();
    take_positions(state);
    wait(shared_.queries_full, queries_.parity);
    queries_.advance();
    int key = tile.first_key;
    for (; key < tile.end_key && key < first_key; key += Config::kKeys) pass_tile();
    if (key < end_key) key = attend_keys(state, key, end_key);
    if (lane_index() == 0) ptx::arrive(shared_.queries_empty);
    for (; key < tile.end_key; key += Config::kKeys) pass_tile();
    store(state);
  }

 private:
  __device__ __forceinline__ void wait(ptx::BlockBarrier& barrier, uint32_t parity) {
    ptx::wait_for(barrier, parity, watch_, shared_.given_up);
  }

  // Key tiles from `key` on until `end`; returns where the next one would begin.
  __device__ __forceinline__ int attend_keys(State& state, int key, int end) {
    float score[kKeyTiles][4];
    uint32_t weight[kSteps][4];
    float factor[2];
    start_scores(score);
    ptx::wait_for_products<0>();
    finish_scores(state, score, key, factor);
    pack_weights(score, weight);
    for (key += Config::kKeys; key < end; key += Config::kKeys) {
      start_scores(score);
      start_values(state, weight, key - Config::kKeys);
      ptx::wait_for_products<1>();
      finish_scores(state, score, key, factor);
      ptx::wait_for_products<0>();
      finish_values(state);
      state.rescale(0, factor);
      pack_weights(score, weight);
    }
    start_values(state, weight, key - Config::kKeys);
    ptx::wait_for_products<0>();
    finish_values(state);
    return key;
  }

  // score = q·kᵀ of the next tile of keys; a committed group.
  __device__ __forceinline__ void start_scores(float (&score)[kKeyTiles][4]) {
    wait(shared_.keys_full[keys_.stage], keys_.parity);
    const uint64_t q = ptx::describe_rows(shared_.queries[0][group_ * 64]);
    const uint64_t k = ptx::describe_rows(shared_.keys[keys_.stage][0]);
    ptx::pin(score);
    ptx::begin_products();
#pragma unroll
    for (int d = 0; d < Config::kHeadDim; d += 16) {
      const int chunk = d / 64, inside = d % 64 * 2;
      ptx::multiply_rows<T, Config::kKeys>(
          score, ptx::move_descriptor(q, chunk * kPrefillRows * 128 + inside),
          ptx::move_descriptor(k, chunk * Config::kKeys * 128 + inside), d > 0);
    }
    ptx::commit_products();
  }
  // Their products have ended.
  __device__ __forceinline__ void finish_scores(State& state, float (&score)[kKeyTiles][4], int key,
                                                float (&factor)[2]) {
    ptx::pin(score);
    if (lane_index() == 0) ptx::arrive(shared_.keys_empty[keys_.stage]);
    keys_.advance();
    const bool part =
        key + Config::kKeys - 1 > lowest_ || (args_.window > 0 && key <= highest_ - args_.window);
    float (&scores)[1][kKeyTiles][4] = reinterpret_cast<float (&)[1][kKeyTiles][4]>(score);
    state.scale_scores(args_, scores);
    if (__any_sync(kFullWarp, part)) state.mask_scores(args_, scores, key);
    state.weigh(score, 0, factor);
  }

  // out += weights · values of the tile of keys from `key` on; a committed group.
  __device__ __forceinline__ void start_values(State& state, const uint32_t (&weight)[kSteps][4],
                                               int key) {
    wait(shared_.values_full[values_.stage], values_.parity);
    if (key < tile_->first_seen || key + Config::kKeys > tile_->end_key) zero_unseen(key);
    const uint64_t v = ptx::describe_columns(shared_.values[values_.stage][0], Config::kKeys * 128);
    ptx::pin(state.out[0]);
    ptx::begin_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      ptx::multiply_columns<T, Config::kColumns>(state.out[0], weight[step],
                                                 ptx::move_descriptor(v, step * 16 * 128));
    ptx::commit_products();
  }
  __device__ __forceinline__ void finish_values(State& state) {
    ptx::pin(state.out[0]);
    if (lane_index() == 0) ptx::arrive(shared_.values_empty[values_.stage]);
    values_.advance();
  }

  // Values outside of first_seen..end_key, of the tile from `key` on, become zero. Both groups do
  // it, each for itself: neither waits for the other.
  __device__ __forceinline__ void zero_unseen(int key) {
    constexpr int kPieces = Config::kChunks * 8;  // of 16 bytes, of a key
    for (int piece = threadIdx.x % 128; piece < Config::kKeys * kPieces; piece += 128) {
      const int row = piece / kPieces, column = piece % kPieces;
      if (key + row >= tile_->first_seen && key + row < tile_->end_key) continue;
      // Whole rows of 128 bytes: swizzling moves pieces only within them.
      auto* to = reinterpret_cast<Vec16*>(shared_.values[values_.stage][column / 8][row]);
      to[column % 8] = Vec16{};
    }
    ptx::fence_async_proxy();
    ptx::sync_threads(1 + group_, 128);
  }

  __device__ __forceinline__ void pack_weights(const float (&score)[kKeyTiles][4],
                                               uint32_t (&weight)[kSteps][4]) const {
    // The accumulators of two tiles of 8 keys are the operand of one step of 16.
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[step][i] =
            pack2<T>(score[2 * step + i / 2][i % 2 * 2], score[2 * step + i / 2][i % 2 * 2 + 1]);
  }

  // A tile of keys that no row of this group sees.
  __device__ __forceinline__ void pass_tile() {
    wait(shared_.keys_full[keys_.stage], keys_.parity);
    wait(shared_.values_full[values_.stage], values_.parity);
    if (lane_index() == 0) {
      ptx::arrive(shared_.keys_empty[keys_.stage]);
      ptx::arrive(shared_.values_empty[values_.stage]);
    }
    keys_.advance();
    values_.advance();
  }

  __device__ int row_of(int half) const {
    return tile_->row_begin + group_ * 64 + warp_index() % 4 * 16 + lane_index() / 4 + 8 * half;
  }
  __device__ __forceinline__ void take_positions(State& state) {
    lowest_ = INT32_MAX;
    highest_ = -1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half);
      const bool exists = row < tile_->row_end;
      state.position[0][half] = row_position(args_, exists ? row : 0, exists);
      lowest_ = min(lowest_, state.position[0][half]);
      highest_ = max(highest_, state.position[0][half]);
    }
  }

  __device__ __forceinline__ void store(const State& state) const {
    T* o = reinterpret_cast<T*>(args_.o);
    const int t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = state.row_total(0, half);
      const float inverse = inverse_total(args_, tile_->head, total, state.largest[0][half]);
      const int row = row_of(half);
#pragma unroll
      for (int j = 0; j < Config::kColumns / 8; j += 4) {
        Vec16 vec;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          vec.words[i] = pack2<T>(state.out[0][j + i][2 * half] * inverse,
                                  state.out[0][j + i][2 * half + 1] * inverse);
        transpose_quad(vec.words);
        const int column = (j + t) * 8;
        if (row < tile_->row_end && column < Config::kHeadDim)
          *reinterpret_cast<Vec16*>(
              o + (int64_t{row} * args_.heads + tile_->head) * Config::kHeadDim + column) = vec;
      }
    }
  }

  const AttentionArgs& args_;
  const BlockWatch& watch_;
  Shared& shared_;
  const int group_;
  const PrefillTile* tile_ = nullptr;
  int32_t lowest_ = 0, highest_ = 0;  // positions of this lane's rows
  ptx::RingPlace<1> queries_;
  ptx::RingPlace<Config::kStages> keys_, values_;
};

// ---- Kernel -------------------------------------------------------------------------------------

template <typename Shared, typename Config>
__device__ void init_barriers(Shared& shared) {
  shared.given_up = 0;
  constexpr int kWarps = Config::kGroups * 4;
  ptx::init_barrier(shared.queries_full, 1);
  ptx::init_barrier(shared.queries_empty, kWarps);
  for (int stage = 0; stage < Config::kStages; ++stage) {
    ptx::init_barrier(shared.keys_full[stage], 1);
    ptx::init_barrier(shared.keys_empty[stage], kWarps);
    ptx::init_barrier(shared.values_full[stage], 1);
    ptx::init_barrier(shared.values_empty[stage], kWarps);
  }
  ptx::publish_barriers();
}

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    attention_prefill_wgmma_kernel(const __grid_constant__ WgmmaPrefillArgs args) {
  if constexpr (ptx::kHasWgmma) {
    using Shared = WgmmaPrefillShared<T, Config>;
    auto& shared =
        *ptx::align_to_swizzle<Shared>(&shared_memory<unsigned char>(kPrefillSharedBytes<Config>));
    if (threadIdx.x == 0) init_barriers<Shared, Config>(shared);
    __syncthreads();
    ptx::wait_for_previous_kernel();
    ptx::allow_next_kernel();
    const AttentionArgs& attention = args.attention;
    const PartPlan plan = attention.counts->plans[attention.plan];
    const int tiles = plan.num_tiles * attention.heads;
    const int group = warp_index() / 4;
    if (group == 0) {
      ptx::shrink_registers<kFetchRegisters>();
      if (warp_index() == 0) {
        PrefillFetcher<T, Config> fetcher(args, shared);
        for (int index = blockIdx.x; index < tiles; index += gridDim.x)
          fetcher.fetch_tile(find_tile<Config::kKeys>(attention, plan, index));
      }
    } else {
      ptx::grow_registers<kMultiplyRegisters>();
      PrefillGroup<T, Config> multiplier(args, shared, group - 1);
      for (int index = blockIdx.x; index < tiles; index += gridDim.x)
        multiplier.attend(find_tile<Config::kKeys>(attention, plan, index));
    }
  }
}

WgmmaPrefillArgs wgmma_prefill_args(const AttentionShape& shape, const CudaLaunch& launch,
                                    const CudaRank& rank, const CudaOperands& at) {
  WgmmaPrefillArgs args{.q = {},
                        .kv = {},
                        .attention = attention_args(shape, rank, at, false),
                        .watch = block_watch(launch, rank)};
  const AttentionArgs& a = args.attention;
  const int64_t row = int64_t{a.heads} * a.head_dim;
  args.q = make_tensor_map({.dtype = a.dtype,
                            .base = a.q,
                            .rank = 2,
                            .sizes = {row, shape.q_rows, 1},
                            .strides = {row * 2, 0},
                            .box = {64, kPrefillRows, 1}});
  args.kv =
      make_tensor_map({.dtype = a.dtype,
                       .base = a.kv,
                       .rank = 3,
                       .sizes = {a.head_dim, a.block_size, shape.kv_blocks * 2 * a.kv_heads},
                       .strides = {int64_t{a.head_dim} * 2, int64_t{a.head_dim} * 2 * a.block_size},
                       .box = {64, 16, 1}});
  return args;
}

template <typename T, int kHeadDim>
CudaKernel make_prefill(const AttentionShape& shape) {
  using Config = WgmmaPrefillConfig<kHeadDim>;
  return per_rank(
      attention_prefill_wgmma_kernel<T, Config>,
      [=](const CudaLaunch& launch) {
        const int64_t rows = most_rows(launch.bucket, shape.which);
        const int64_t tiles = (rows / kPrefillRows + launch.bucket.seqs) * shape.constant.heads;
        return row_shape(launch, blocks_for(launch, tiles, 1), Config::kThreads,
                         kPrefillSharedBytes<Config>);
      },
      [=](const CudaLaunch& launch, const CudaRank& rank, const CudaOperands& at) {
        return wgmma_prefill_args(shape, launch, rank, at);
      },
      kPrefillSharedBytes<Config>);
}

template <typename T>
CudaKernel make_prefill_of(const AttentionShape& shape) {
  switch (shape.constant.head_dim) {
    case 64:
      return make_prefill<T, 64>(shape);
    case 80:
      return make_prefill<T, 80>(shape);
    case 96:
      return make_prefill<T, 96>(shape);
    case 128:
      return make_prefill<T, 128>(shape);
    case 256:
      return make_prefill<T, 256>(shape);
    default:
      return {};
  }
}

}  // namespace

CudaKernel attention_prefill_wgmma(const AttentionShape& shape) {
  if (shape.constant.dtype == DType::kBf16) return make_prefill_of<bf16>(shape);
  return make_prefill_of<f16>(shape);
}

}  // namespace nanoweave
