// Prefill attention: tiles of kPrefillRows consecutive rows of a sequence, one query head, against
// the keys they see. Keys beyond the tile's last row and before its first row's window are never
// loaded. The floor is 4·D flops per (row, visible key, head) on tensor cores; keys and values come
// from L2 for all but the first head that shares them.
//
// One tile of queries stays in shared memory; tiles of keys and values arrive in two buffers, one
// filled (cp.async) while the other is multiplied, a block barrier per tile. Every row meets its
// keys in the same tiles in the same order, whatever the tile of rows it is in, so its bits do not
// depend on how a prompt is cut. Stays in the rank.
#include "ops/attention.cuh"

namespace nanoweave {

namespace {

template <int kHeadDim>
struct PrefillConfig {
  // Two tiles of 16 rows per warp halve the shared memory traffic per flop; at head size 256 their
  // sums do not fit the registers.
  static constexpr int kRowTiles = kHeadDim <= 128 ? 2 : 1;
  static constexpr int kKeys = kHeadDim <= 64 ? 64 : kHeadDim <= 128 ? 32 : 16;
  static constexpr int kRows = kPrefillRows;
  static constexpr int kWarps = kRows / (16 * kRowTiles);
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kQueryElements = kRows * kRowPitch<kHeadDim>;
  static constexpr int kTileElements = kKeys * kRowPitch<kHeadDim>;
  static constexpr int kSharedBytes = 2 * (kQueryElements + 4 * kTileElements);
  static_assert(kRows % (16 * kRowTiles) == 0);
  static_assert(kSharedBytes <= 99 << 10, "more than sm_89 has");
};

template <typename T, int kHeadDim>
struct PrefillShared {
  using Config = PrefillConfig<kHeadDim>;
  alignas(16) T queries[Config::kQueryElements];
  alignas(16) T keys[2][Config::kTileElements];
  alignas(16) T values[2][Config::kTileElements];
};

template <typename T, int kHeadDim>
class PrefillBlock {
 public:
  using Config = PrefillConfig<kHeadDim>;
  using State = WarpAttention<T, kHeadDim, Config::kRowTiles, Config::kKeys>;
  static constexpr int kPitch = kRowPitch<kHeadDim>;
  static constexpr int kChunks = kHeadDim / 8;

  __device__ PrefillBlock(const AttentionArgs& args, PrefillShared<T, kHeadDim>& shared,
                          const PrefillTile& tile)
      : args_(args), shared_(shared), tile_(tile) {}

  __device__ void run() {
    load_queries();
    fetch(tile_.first_key, 0);
    State state;
    state.reset();
    const bool works = take_positions(state);
    int buffer = 0;
    for (int key = tile_.first_key; key < tile_.end_key; key += Config::kKeys, buffer ^= 1) {
      ptx::wait_for_copies<0>();
      __syncthreads();  // this tile is there; all are done with the one before
      fetch(key + Config::kKeys, buffer ^ 1);
      if (works)
        state.add_tile(args_, own_queries(), shared_.keys[buffer], shared_.values[buffer], key,
                       sees_part_of(key));
    }
    ptx::wait_for_copies<0>();  // the queries' too, where there was no key
    store(state);
  }

 private:
  __device__ T* own_queries() const {
    return shared_.queries + warp_index() * Config::kRowTiles * 16 * kPitch;
  }
  __device__ int row_of(int tile, int half) const {
    return tile_.row_begin + (warp_index() * Config::kRowTiles + tile) * 16 + lane_index() / 4 +
           8 * half;
  }

  // Rows past the tile's end are zero.
  __device__ void load_queries() {
    const T* q = reinterpret_cast<const T*>(args_.q);
    for (int chunk = threadIdx.x; chunk < Config::kRows * kChunks; chunk += Config::kThreads) {
      const int row = tile_.row_begin + chunk / kChunks, column = chunk % kChunks * 8;
      const bool exists = row < tile_.row_end;
      const int64_t at =
          (int64_t{exists ? row : tile_.row_begin} * args_.heads + tile_.head) * kHeadDim;
      ptx::copy_async16(shared_.queries + chunk / kChunks * kPitch + column, q + at + column,
                        exists ? 16 : 0);
    }
  }

  // Starts the copies of the keys and values from `first` on. Keys past the end are zero: they are
  // masked, but 0·NaN would not be.
  __device__ void fetch(int first, int buffer) {
    if (first < tile_.end_key) {
      const int32_t* table = args_.block_tables + int64_t{tile_.seq} * args_.block_table_stride;
#pragma unroll
      for (int chunk = threadIdx.x; chunk < Config::kKeys * kChunks; chunk += Config::kThreads) {
        const int key = chunk / kChunks, column = chunk % kChunks * 8;
        const int number = first + key;
        const bool exists = number < tile_.end_key;
        const int32_t block = table[(exists ? number : first) / args_.block_size];
        const uint32_t row = kv_row(args_, block, tile_.kv_head) + number % args_.block_size;
        const T* from = reinterpret_cast<const T*>(args_.kv) + uint64_t{row} * kHeadDim + column;
        const int to = key * kPitch + column, bytes = exists ? 16 : 0;
        ptx::copy_async16(shared_.keys[buffer] + to, from, bytes);
        ptx::copy_async16(shared_.values[buffer] + to,
                          from + uint64_t{kv_rows_to_values(args_)} * kHeadDim, bytes);
      }
    }
    ptx::commit_copies();
  }

  // True: some row of the warp sees something.
  __device__ bool take_positions(State& state) {
    bool any = false;
    lowest_ = INT32_MAX;
    highest_ = -1;
#pragma unroll
    for (int r = 0; r < Config::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(r, half);
        const bool exists = row < tile_.row_end;
        const int32_t position = row_position(args_, exists ? row : 0, exists);
        state.position[r][half] = position;
        any = any || position >= 0;
        lowest_ = min(lowest_, position);
        highest_ = max(highest_, position);
      }
    return __any_sync(kFullWarp, any) != 0;
  }
  // Whether a row of the warp does not see all keys of the tile that starts at `key`.
  __device__ bool sees_part_of(int key) const {
    const bool part =
        key + Config::kKeys - 1 > lowest_ || (args_.window > 0 && key <= highest_ - args_.window);
    return __any_sync(kFullWarp, part) != 0;
  }

  __device__ void store(const State& state) const {
    T* o = reinterpret_cast<T*>(args_.o);
    const int t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < Config::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = state.row_total(r, half);
        const float inverse = inverse_total(args_, tile_.head, total, state.largest[r][half]);
        const int row = row_of(r, half);
        if (row >= tile_.row_end) continue;
        T* to = o + (int64_t{row} * args_.heads + tile_.head) * kHeadDim + t * 2;
#pragma unroll
        for (int d = 0; d < State::kDimTiles; ++d) {
          const float pair[2] = {state.out[r][d][2 * half] * inverse,
                                 state.out[r][d][2 * half + 1] * inverse};
          store_vector<T, 2>(to + d * 8, pair);
        }
      }
  }

  const AttentionArgs& args_;
  PrefillShared<T, kHeadDim>& shared_;
  const PrefillTile& tile_;
  int32_t lowest_, highest_;  // positions of this lane's rows
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(PrefillConfig<kHeadDim>::kThreads)
    attention_prefill_kernel(const __grid_constant__ AttentionArgs args) {
  auto& shared = shared_memory<PrefillShared<T, kHeadDim>>();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const PartPlan plan = args.counts->plans[args.plan];
  const int tiles = plan.num_tiles * args.heads;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const PrefillTile tile = find_tile<PrefillConfig<kHeadDim>::kKeys>(args, plan, index);
    PrefillBlock<T, kHeadDim>(args, shared, tile).run();
    __syncthreads();  // the buffers are free again
  }
}

template <typename T, int kHeadDim>
CudaKernel make_prefill(const AttentionShape& shape) {
  using Config = PrefillConfig<kHeadDim>;
  return per_rank(
      attention_prefill_kernel<T, kHeadDim>,
      [=](const CudaLaunch& launch) {
        const int64_t rows = most_rows(launch.bucket, shape.which);
        const int64_t tiles = (rows / Config::kRows + launch.bucket.seqs) * shape.constant.heads;
        const int per_sm = static_cast<int>(
            std::clamp<int64_t>(launch.device.max_shared_bytes / Config::kSharedBytes, 1, 2));
        return row_shape(launch, blocks_for(launch, tiles, per_sm), Config::kThreads,
                         Config::kSharedBytes);
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        return attention_args(shape, rank, at, false);
      },
      Config::kSharedBytes);
}

template <typename T>
CudaKernel make_prefill_of(const AttentionShape& shape) {
  switch (shape.constant.head_dim) {
    case 32:
      return make_prefill<T, 32>(shape);
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

CudaKernel attention_prefill(const AttentionShape& shape) {
  if (shape.constant.dtype == DType::kBf16) return make_prefill_of<bf16>(shape);
  return make_prefill_of<f16>(shape);
}

}  // namespace nanoweave
