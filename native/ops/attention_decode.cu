// Decode attention: up to kDecodeRows rows of a sequence against its whole context, in units of
// (split of the keys, KV head). All query heads of a KV head share one pass over its keys and
// values, packed into tiles of 16 rows, so the floor is the bytes of the KV cache, once each.
//
// Each warp of a block streams its own tiles of 16 keys through a private ring in shared memory
// (cp.async, no block barriers) and keeps its own softmax state; the warps merge at the end of the
// unit. Where a sequence has several splits, units leave float32 partials in the workspace, and the
// last one to arrive at the (sequence, KV head) counter merges them in split order: the bits do not
// depend on who is last. Stays in the rank.
#include "ops/attention.cuh"

namespace nanoweave {

namespace {

struct DecodeConfig {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 16;  // packed query rows of a tile
  static constexpr int kKeys = 16;  // of a warp's tile
  static constexpr int kMaxStages = 3;
};

// Shared memory, in elements of T: queries [16, pitch], then per warp `stages` times keys and
// values [16, pitch] each. After the keys, a warp's ring takes its sums for the merge.
template <int kHeadDim>
struct DecodeLayout {
  static constexpr int kTile = DecodeConfig::kKeys * kRowPitch<kHeadDim>;
  static constexpr int kStage = 2 * kTile;
  static constexpr int64_t bytes(int warps, int stages) {
    return 2 * (int64_t{kTile} + int64_t{warps} * stages * kStage);
  }
  // What fits: three stages if possible, else two of fewer warps.
  static void choose(int64_t available, int& warps, int& stages) {
    warps = DecodeConfig::kWarps;
    stages = DecodeConfig::kMaxStages;
    if (bytes(warps, stages) > available / 2) stages = 2;
    while (warps > 1 && bytes(warps, stages) > available) warps /= 2;
  }
};

struct DecodeShared {
  alignas(16) unsigned char bytes[1];
};

// A warp's result for the rows of a tile, in its ring.
template <int kHeadDim>
struct MergeRows {
  float largest[DecodeConfig::kRows];
  float total[DecodeConfig::kRows];
  float out[DecodeConfig::kRows][kHeadDim];
};

// A split's result for one row and head, in the workspace.
template <int kHeadDim>
struct alignas(16) Partial {
  float largest, total, unused[2];
  float out[kHeadDim];
};

// The unit at hand.
struct DecodeUnit {
  Segment segment;
  int segment_index;
  int split;
  int kv_head;
  int group;      // query heads of a KV head
  int num_rows;   // (row, head of the group) pairs
  int first_key;  // of the split, rounded down to a tile
  int end_key;

  __device__ int row(int packed) const { return segment.row_begin + packed / group; }
  __device__ int head(int packed) const { return kv_head * group + packed % group; }
};

__device__ DecodeUnit find_unit(const AttentionArgs& args, const PartPlan& plan, int index) {
  DecodeUnit unit;
  const int split = index / args.kv_heads;
  unit.kv_head = index % args.kv_heads;
  unit.segment_index = find_segment(args.segments, plan.num_decode, split);
  unit.segment = args.segments[unit.segment_index];
  unit.split = split - unit.segment.first_unit;
  unit.group = args.heads / args.kv_heads;
  unit.num_rows = (unit.segment.row_end - unit.segment.row_begin) * unit.group;
  const int begin = unit.split * unit.segment.split_keys;
  unit.end_key = min(begin + unit.segment.split_keys, unit.segment.context);
  // Rows ascend in position: the first one that is not padding looks furthest back.
  int first = 0;
  if (args.window > 0) {
    int position = unit.segment.context - 1;
    for (int row = unit.segment.row_end - 1; row >= unit.segment.row_begin; --row)
      if (args.kv_slots[row] >= 0) position = args.positions[row];
    first = first_visible(args, position);
  }
  unit.first_key = max(begin, first) / DecodeConfig::kKeys * DecodeConfig::kKeys;
  return unit;
}

template <typename T, int kHeadDim>
class DecodeWarp {
 public:
  static constexpr int kKeys = DecodeConfig::kKeys;
  static constexpr int kPitch = kRowPitch<kHeadDim>;
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte pieces of a row
  using Layout = DecodeLayout<kHeadDim>;
  using State = WarpAttention<T, kHeadDim, 1, kKeys>;

  __device__ DecodeWarp(const AttentionArgs& args, T* ring, int warps, int stages)
      : args_(args), ring_(ring), warps_(warps), stages_(stages) {}

  // All this warp's tiles of the unit, for one tile of packed rows; `state` is ready.
  __device__ void run(const DecodeUnit& unit, const T* queries, State& state) {
    const int tiles = (unit.end_key - unit.first_key + kKeys - 1) / kKeys;
    const int own = max(0, (tiles - warp_index() + warps_ - 1) / warps_);
    // Lowest position that sees everything from its window on, and what it sees.
    for (int ahead = 0; ahead < stages_ - 1; ++ahead) fetch(unit, ahead, own);
    for (int i = 0; i < own; ++i) {
      if (stages_ == 3)
        ptx::wait_for_copies<1>();
      else
        ptx::wait_for_copies<0>();
      __syncwarp();  // the tile is whole; all lanes are done with the one before
      fetch(unit, i + stages_ - 1, own);
      const T* tile = ring_ + i % stages_ * Layout::kStage;
      const int first_key = key_of(unit, i);
      state.add_tile(args_, queries, tile, tile + Layout::kTile, first_key, true);
    }
    ptx::wait_for_copies<0>();
    __syncwarp();
  }

 private:
  __device__ int key_of(const DecodeUnit& unit, int tile) const {
    return unit.first_key + (warp_index() + tile * warps_) * kKeys;
  }

  // Starts the copies of this warp's tile `tile`. Every call is one group, also past the end.
  __device__ void fetch(const DecodeUnit& unit, int tile, int own) {
    if (tile < own) {
      if (tile % kWarpSize == 0) load_blocks(unit, tile);
      const int32_t block = __shfl_sync(kFullWarp, blocks_, tile % kWarpSize);
      const int first_key = key_of(unit, tile);
      const uint32_t row = kv_row(args_, block, unit.kv_head) + first_key % args_.block_size;
      const T* keys = reinterpret_cast<const T*>(args_.kv) + uint64_t{row} * kHeadDim;
      const T* values = keys + uint64_t{kv_rows_to_values(args_)} * kHeadDim;
      T* to = ring_ + tile % stages_ * Layout::kStage;
#pragma unroll
      for (int chunk = lane_index(); chunk < kKeys * kChunks; chunk += kWarpSize) {
        const int key = chunk / kChunks, column = chunk % kChunks * 8;
        // Keys past the context are zero: they are masked, but 0·NaN would not be.
        const int bytes = first_key + key < unit.end_key ? 16 : 0;
        const int from = key * kHeadDim + column;
        ptx::copy_async16(to + key * kPitch + column, keys + from, bytes);
        ptx::copy_async16(to + Layout::kTile + key * kPitch + column, values + from, bytes);
      }
    }
    ptx::commit_copies();
  }

  // Lane l takes the block of tile `tile` + l.
  __device__ void load_blocks(const DecodeUnit& unit, int tile) {
    const int key = key_of(unit, tile + lane_index());
    const int32_t* table =
        args_.block_tables + int64_t{unit.segment.seq} * args_.block_table_stride;
    blocks_ = key < unit.end_key ? table[key / args_.block_size] : 0;
  }

  const AttentionArgs& args_;
  T* ring_;
  int warps_, stages_;
  int32_t blocks_ = 0;
};

// Packed rows of the tile into shared memory; rows that are not there are zero.
template <typename T, int kHeadDim>
__device__ void load_queries(const AttentionArgs& args, const DecodeUnit& unit, int first, T* to) {
  constexpr int kChunks = kHeadDim / 8;
  for (int chunk = threadIdx.x; chunk < DecodeConfig::kRows * kChunks; chunk += blockDim.x) {
    const int packed = first + chunk / kChunks, column = chunk % kChunks * 8;
    Vec16 value{};
    if (packed < unit.num_rows) {
      const int64_t at = (int64_t{unit.row(packed)} * args.heads + unit.head(packed)) * kHeadDim;
      value = *reinterpret_cast<const Vec16*>(reinterpret_cast<const T*>(args.q) + at + column);
    }
    *reinterpret_cast<Vec16*>(to + chunk / kChunks * kRowPitch<kHeadDim> + column) = value;
  }
}

// Leaves the warp's sums in its ring.
template <typename T, int kHeadDim>
__device__ void put_sums(const WarpAttention<T, kHeadDim, 1, DecodeConfig::kKeys>& state,
                         MergeRows<kHeadDim>& to) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = state.row_total(0, half);
    const int row = g + 8 * half;
    if (t == 0) {
      to.largest[row] = state.largest[0][half];
      to.total[row] = total;
    }
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d) {
      to.out[row][d * 8 + t * 2] = state.out[0][d][2 * half];
      to.out[row][d * 8 + t * 2 + 1] = state.out[0][d][2 * half + 1];
    }
  }
}

// Four columns of a row's result from several softmax states: called for each state in a fixed
// order with its largest score, sum and columns.
struct Merge {
  float largest = -INFINITY;
  float total = 0;
  float out[4] = {};

  __device__ __forceinline__ void add(float most, float sum, const float (&columns)[4]) {
    const float now = fmaxf(largest, most);
    if (now == -INFINITY) return;  // neither has seen a key
    const float keep = ptx::exp2(largest - now), take = ptx::exp2(most - now);
    total = total * keep + sum * take;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = out[i] * keep + columns[i] * take;
    largest = now;
  }
  __device__ __forceinline__ void normalize(const AttentionArgs& args, int head) {
    const float inverse = inverse_total(args, head, total, largest);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] *= inverse;
  }
};

template <int kHeadDim>
__device__ __forceinline__ Partial<kHeadDim>& partial_of(const AttentionArgs& args,
                                                         const DecodeUnit& unit, int split,
                                                         int packed) {
  const int rows = unit.segment.row_end - unit.segment.row_begin;
  const int64_t row = unit.segment.first_partial + split * rows + packed / unit.group;
  return reinterpret_cast<Partial<kHeadDim>*>(args.partials)[row * args.heads + unit.head(packed)];
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void store_output(const AttentionArgs& args, const DecodeUnit& unit,
                                             int packed, int column, const float (&values)[4]) {
  const int64_t at = (int64_t{unit.row(packed)} * args.heads + unit.head(packed)) * kHeadDim;
  store_vector<T, 4>(reinterpret_cast<T*>(args.o) + at + column, values);
}

// Merges the warps of the block for the packed rows from `first` on: into o, or a partial.
template <typename T, int kHeadDim>
__device__ void merge_warps(const AttentionArgs& args, const DecodeUnit& unit, int first,
                            const T* rings, int warps, int ring_elements) {
  constexpr int kPieces = kHeadDim / 4;
  const int rows = min(DecodeConfig::kRows, unit.num_rows - first);
  for (int piece = threadIdx.x; piece < rows * kPieces; piece += blockDim.x) {
    const int row = piece / kPieces, column = piece % kPieces * 4;
    Merge merge;
    for (int warp = 0; warp < warps; ++warp) {
      const auto& sums =
          *reinterpret_cast<const MergeRows<kHeadDim>*>(rings + warp * ring_elements);
      float columns[4];
      load_vector<float, 4>(&sums.out[row][column], columns);
      merge.add(sums.largest[row], sums.total[row], columns);
    }
    if (unit.segment.num_splits == 1) {
      merge.normalize(args, unit.head(first + row));
      store_output<T, kHeadDim>(args, unit, first + row, column, merge.out);
      continue;
    }
    auto& partial = partial_of<kHeadDim>(args, unit, unit.split, first + row);
    ptx::store_remote(&partial.out[column], pack<float>(merge.out));
    if (column == 0) ptx::store_remote(&partial, pack<float>({merge.largest, merge.total, 0, 0}));
  }
}

// Merges all splits of the unit's sequence and KV head, in order.
template <typename T, int kHeadDim>
__device__ void merge_splits(const AttentionArgs& args, const DecodeUnit& unit) {
  constexpr int kPieces = kHeadDim / 4;
  for (int piece = threadIdx.x; piece < unit.num_rows * kPieces; piece += blockDim.x) {
    const int packed = piece / kPieces, column = piece % kPieces * 4;
    Merge merge;
#pragma unroll 4
    for (int split = 0; split < unit.segment.num_splits; ++split) {
      const auto& partial = partial_of<kHeadDim>(args, unit, split, packed);
      float columns[4];
      load_vector<float, 4>(&partial.out[column], columns);
      merge.add(partial.largest, partial.total, columns);
    }
    merge.normalize(args, unit.head(packed));
    store_output<T, kHeadDim>(args, unit, packed, column, merge.out);
  }
}

struct DecodeArgs {
  AttentionArgs attention;
  int32_t stages;
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(DecodeConfig::kThreads)
    attention_decode_kernel(const __grid_constant__ DecodeArgs decode) {
  using Layout = DecodeLayout<kHeadDim>;
  const AttentionArgs& args = decode.attention;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int ring_elements = decode.stages * Layout::kStage;
  T* queries =
      reinterpret_cast<T*>(shared_memory<DecodeShared>(Layout::bytes(warps, decode.stages)).bytes);
  T* rings = queries + Layout::kTile;
  T* ring = rings + warp_index() * ring_elements;

  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const PartPlan plan = args.counts->plans[args.plan];
  const int units = plan.num_splits * args.kv_heads;
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    const DecodeUnit unit = find_unit(args, plan, index);
    for (int first = 0; first < unit.num_rows; first += DecodeConfig::kRows) {
      load_queries<T, kHeadDim>(args, unit, first, queries);
      WarpAttention<T, kHeadDim, 1, DecodeConfig::kKeys> state;
      state.reset();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int packed = first + lane_index() / 4 + 8 * half;
        const bool exists = packed < unit.num_rows;
        state.position[0][half] = row_position(args, exists ? unit.row(packed) : 0, exists);
      }
      __syncthreads();  // the queries are there
      DecodeWarp<T, kHeadDim>(args, ring, warps, decode.stages).run(unit, queries, state);
      put_sums<T, kHeadDim>(state, *reinterpret_cast<MergeRows<kHeadDim>*>(ring));
      __syncthreads();  // all warps have left their sums
      merge_warps<T, kHeadDim>(args, unit, first, rings, warps, ring_elements);
      __syncthreads();  // the rings and the queries are free again
    }
    if (unit.segment.num_splits == 1) continue;
    bool last = false;
    if (threadIdx.x == 0) {
      uint32_t* counter = args.counters + unit.segment_index * args.kv_heads + unit.kv_head;
      // release: publishes our partials; acquire: the others', when ours is the last.
      last = ptx::add_acquire_release(counter, 1) + 1 ==
             static_cast<uint32_t>(unit.segment.num_splits);
      if (last) *counter = 0;
    }
    if (__syncthreads_or(last)) merge_splits<T, kHeadDim>(args, unit);
  }
}

template <typename T, int kHeadDim>
CudaKernel make_decode(const AttentionShape& shape) {
  using Layout = DecodeLayout<kHeadDim>;
  static_assert(sizeof(MergeRows<kHeadDim>) <= 2 * 2 * Layout::kStage);
  auto* kernel = attention_decode_kernel<T, kHeadDim>;
  const int64_t partial_bytes =
      shape.partial_rows * shape.constant.heads * static_cast<int64_t>(sizeof(Partial<kHeadDim>));
  return {
      .launch =
          [=](const CudaLaunch& launch) {
            int warps = 0, stages = 0;
            Layout::choose(launch.device.max_shared_bytes, warps, stages);
            const int64_t shared_bytes = Layout::bytes(warps, stages);
            const auto per_sm = static_cast<int>(launch.device.max_shared_bytes / shared_bytes);
            const int64_t most = launch.bucket.seqs * kMaxSplits * shape.constant.kv_heads;
            const unsigned blocks = blocks_for(launch, most, per_sm);
            for (size_t i = 0; i < launch.ranks.size(); ++i) {
              DecodeArgs args{
                  .attention = attention_args(shape, launch.ranks[i], launch.operands[i], true),
                  .stages = stages};
              args.attention.counters = reinterpret_cast<uint32_t*>(launch.workspace);
              args.attention.partials =
                  reinterpret_cast<float*>(launch.workspace + kWorkspaceCounterBytes);
              nanoweave::launch(kernel,
                                row_shape(launch, blocks, static_cast<unsigned>(warps * kWarpSize),
                                          static_cast<size_t>(shared_bytes)),
                                launch.stream, args);
            }
          },
      .workspace_bytes = [=](const CudaDevice&,
                             const CudaBucket&) { return kWorkspaceCounterBytes + partial_bytes; },
      .functions = {cuda_function(kernel,
                                  Layout::bytes(DecodeConfig::kWarps, DecodeConfig::kMaxStages))}};
}

template <typename T>
CudaKernel make_decode_of(const AttentionShape& shape) {
  switch (shape.constant.head_dim) {
    case 32:
      return make_decode<T, 32>(shape);
    case 64:
      return make_decode<T, 64>(shape);
    case 80:
      return make_decode<T, 80>(shape);
    case 96:
      return make_decode<T, 96>(shape);
    case 128:
      return make_decode<T, 128>(shape);
    case 256:
      return make_decode<T, 256>(shape);
    default:
      return {};
  }
}

}  // namespace

CudaKernel attention_decode(const AttentionShape& shape) {
  if (shape.constant.dtype == DType::kBf16) return make_decode_of<bf16>(shape);
  return make_decode_of<f16>(shape);
}

}  // namespace nanoweave
