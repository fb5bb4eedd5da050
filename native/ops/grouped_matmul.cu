// grouped_matmul: y = x·W[e]ᵀ + bias[e] for the rows [offsets[e], offsets[e + 1]) of each local
// expert e. x [N, K], y [N, M], the experts' weights [M, K] below each other, `padded` rows apart.
// The grid depends on the bucket alone: every block reads the offsets, numbers the tiles of all
// experts through and takes every gridDim-th. Three kernels:
//   tiles   16-bit x and W of one type: the tensor-core tiles of matmul, for each expert those that
//           fit its rows. A row's bits do not depend on how many rows there are.
//   stream  up to kStreamRows rows for each expert, unless deterministic: weights are read once.
//   simt    everything else, float32 multiply-adds.
// Floor: 2·K·M flops per row; the weights of experts with rows, once. Stays in the rank.
#include "ops/grouped.cuh"
#include "ops/matmul_simt.cuh"
#include "ops/matmul_stream.cuh"
#include "ops/matmul_tile.cuh"

namespace nanoweave {

namespace {

struct GroupedArgs {
  MatmulArgs matmul;  // of expert 0, all rows
  GroupedRows rows;
  int32_t padded;     // rows of W, and of the bias, from one expert to the next
  int32_t sm_budget;  // tiles that fill the device
};

// The matmul of one expert.
__device__ __forceinline__ MatmulArgs matmul_of(const GroupedArgs& args, int expert) {
  MatmulArgs one = args.matmul;
  const int64_t first = int64_t{expert} * args.padded;
  one.w += first * args.matmul.k * dtype_bytes(args.matmul.w_dtype);
  if (one.bias != nullptr) one.bias += first;
  return one;
}

// ---- Schedule -----------------------------------------------------------------------------------

struct TileSize {
  int rows, columns;
};

// A tile of an expert, rows counted from its first.
struct GroupedTile {
  int expert;
  RowRange rows;  // of the expert
  int row, column;
};

struct ScheduleShared {
  alignas(16) int32_t warps[kWarpSize];  // scratch of the scan
  int32_t first[1];                      // [experts + 1] tiles of the experts in front
};

inline __host__ __device__ int schedule_bytes(int experts) {
  const int words = kWarpSize + experts + 1;
  return (words * static_cast<int>(sizeof(int32_t)) + 15) / 16 * 16;
}

__device__ __forceinline__ int tiles_along(int count, int size) {
  return (count + size - 1) / size;
}

// Numbers the tiles of all experts through; size_of(rows) gives the tiles of an expert with that
// many. All threads of the block make it.
template <int kThreads, typename SizeOf>
class Schedule {
 public:
  __device__ Schedule(const GroupedArgs& args, ScheduleShared& shared, const SizeOf& size_of)
      : args_(args), shared_(shared), size_of_(size_of) {
    const int experts = args.rows.experts;
    const int each = tiles_along(experts, kThreads);
    const int first = min(static_cast<int>(threadIdx.x) * each, experts);
    const int end = min(first + each, experts);
    int sum = 0;
    for (int e = first; e < end; ++e) sum += tiles_of(e);
    int next = block_prefix<kThreads>(sum, shared.warps, &total_);
    for (int e = first; e < end; ++e) {
      shared.first[e] = next;
      next += tiles_of(e);
    }
    if (threadIdx.x == 0) shared.first[experts] = total_;
    __syncthreads();  // the schedule is there
  }

  __device__ __forceinline__ int tiles() const { return total_; }

  __device__ __forceinline__ GroupedTile tile(int index) const {
    int expert = 0, end = args_.rows.experts;  // first[expert] <= index < first[end]
    while (end - expert > 1) {
      const int middle = (expert + end) / 2;
      (shared_.first[middle] <= index ? expert : end) = middle;
    }
    const RowRange rows = args_.rows.of_expert(expert);
    const TileSize size = size_of_(rows.count);
    const TilePlace place =
        place_tile(index - shared_.first[expert], tiles_along(rows.count, size.rows),
                   tiles_along(args_.matmul.n, size.columns));
    return {expert, rows, place.row * size.rows, place.column * size.columns};
  }

 private:
  __device__ __forceinline__ int tiles_of(int expert) const {
    const int rows = args_.rows.of_expert(expert).count;
    if (rows == 0) return 0;
    const TileSize size = size_of_(rows);
    return tiles_along(rows, size.rows) * tiles_along(args_.matmul.n, size.columns);
  }

  const GroupedArgs& args_;
  ScheduleShared& shared_;
  const SizeOf size_of_;
  int total_ = 0;
};

// Calls body(tile) for the tiles of this block.
template <int kThreads, typename SizeOf, typename Body>
__device__ __forceinline__ void for_tiles(const GroupedArgs& args, ScheduleShared& shared,
                                          const SizeOf& size_of, const Body& body) {
  const Schedule<kThreads, SizeOf> schedule(args, shared, size_of);
  for (int i = static_cast<int>(blockIdx.x); i < schedule.tiles(); i += static_cast<int>(gridDim.x))
    body(schedule.tile(i));
}

// ---- Tiles on tensor cores ----------------------------------------------------------------------

struct GroupedTileConfig {
  static constexpr int kThreads = LargeTile::kThreads;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kRingBytes =
      std::max({LargeTile::kSharedBytes, MediumTile::kSharedBytes, SmallTile::kSharedBytes});
  static_assert(MediumTile::kThreads == kThreads && SmallTile::kThreads == kThreads);
};

// Few rows take small tiles; large ones serve where they fill the device.
struct ChooseTile {
  bool large;

  __device__ __forceinline__ TileSize operator()(int rows) const {
    if (rows <= SmallTile::kRows) return {SmallTile::kRows, SmallTile::kColumns};
    if (large && rows > MediumTile::kRows) return {LargeTile::kRows, LargeTile::kColumns};
    return {MediumTile::kRows, MediumTile::kColumns};
  }
};

__device__ __forceinline__ bool large_tiles_fill(const GroupedArgs& args, ScheduleShared& shared) {
  int tiles = 0;
  for (int e = threadIdx.x; e < args.rows.experts; e += GroupedTileConfig::kThreads)
    tiles += tiles_along(args.rows.of_expert(e).count, LargeTile::kRows);
  int total = 0;
  block_prefix<GroupedTileConfig::kThreads>(tiles, shared.warps, &total);
  __syncthreads();  // the scratch is free again
  return total * tiles_along(args.matmul.n, LargeTile::kColumns) >= args.sm_budget;
}

template <typename T, typename Config>
__device__ __forceinline__ void run_tile(const MatmulArgs& matmul, const GroupedTile& tile,
                                         T* ring) {
  TileBlock<T, Config>(matmul, ring, tile.rows, tile.row, tile.column).run();
}

template <typename T>
__global__ void __launch_bounds__(GroupedTileConfig::kThreads)
    grouped_tile_kernel(const __grid_constant__ GroupedArgs args) {
  const int schedule = schedule_bytes(args.rows.experts);
  auto& shared =
      shared_memory<ScheduleShared>(static_cast<size_t>(schedule + GroupedTileConfig::kRingBytes));
  T* ring = reinterpret_cast<T*>(reinterpret_cast<std::byte*>(&shared) + schedule);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const ChooseTile choose{large_tiles_fill(args, shared)};
  for_tiles<GroupedTileConfig::kThreads>(args, shared, choose, [&](const GroupedTile& tile) {
    const MatmulArgs matmul = matmul_of(args, tile.expert);
    const TileSize size = choose(tile.rows.count);
    __syncthreads();  // all are done with the ring
    if (size.rows == SmallTile::kRows)
      run_tile<T, SmallTile>(matmul, tile, ring);
    else if (size.rows == MediumTile::kRows)
      run_tile<T, MediumTile>(matmul, tile, ring);
    else
      run_tile<T, LargeTile>(matmul, tile, ring);
  });
}

// ---- Few rows -----------------------------------------------------------------------------------

template <typename T, int kRowTiles, int kXTiles>
struct GroupedStreamShared {
  typename StreamBlock<T, kRowTiles, kXTiles>::Shared sums;
  ScheduleShared schedule;  // last: its length follows the experts
};

template <typename T, int kRowTiles, int kXTiles>
constexpr int stream_shared_bytes(int experts) {
  return static_cast<int>(sizeof(GroupedStreamShared<T, kRowTiles, kXTiles>)) +
         schedule_bytes(experts);
}

struct GroupedStreamConfig {
  static constexpr int kBlocksPerSm = 2;
};

template <typename T, int kRowTiles, int kXTiles>
__global__ void __launch_bounds__(StreamConfig::kThreads)
    grouped_stream_kernel(const __grid_constant__ GroupedArgs args) {
  using Block = StreamBlock<T, kRowTiles, kXTiles>;
  auto& shared = shared_memory<GroupedStreamShared<T, kRowTiles, kXTiles>>(
      static_cast<size_t>(stream_shared_bytes<T, kRowTiles, kXTiles>(args.rows.experts)));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const auto all_rows = [](int) { return TileSize{INT32_MAX / 2, Block::kWeightRows}; };
  for_tiles<StreamConfig::kThreads>(args, shared.schedule, all_rows, [&](const GroupedTile& tile) {
    const MatmulArgs matmul = matmul_of(args, tile.expert);
    Block block(matmul, tile.column);
    for (int first = 0; first < tile.rows.count; first += Block::kXRows) {
      block.load_weights(warp_index());
      block.run(tile.rows, first, shared.sums);
    }
  });
}

// ---- Multiply-adds ------------------------------------------------------------------------------

struct GroupedSimtShared {
  SimtShared tiles;
  ScheduleShared schedule;  // last: its length follows the experts
};

inline __host__ __device__ int simt_shared_bytes(int experts) {
  return static_cast<int>(sizeof(GroupedSimtShared)) + schedule_bytes(experts);
}

struct GroupedSimtConfig {
  static constexpr int kBlocksPerSm = 4;
};

__global__ void __launch_bounds__(SimtConfig::kThreads)
    grouped_simt_kernel(const __grid_constant__ GroupedArgs args) {
  auto& shared =
      shared_memory<GroupedSimtShared>(static_cast<size_t>(simt_shared_bytes(args.rows.experts)));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const auto square = [](int) { return TileSize{SimtConfig::kTile, SimtConfig::kTile}; };
  for_tiles<SimtConfig::kThreads>(args, shared.schedule, square, [&](const GroupedTile& tile) {
    simt_tile(matmul_of(args, tile.expert), shared.tiles, tile.rows, tile.row, tile.column);
  });
}

// ---- Launching ----------------------------------------------------------------------------------

struct GroupedShape {
  MatmulArgs constant;  // without pointers
  GroupedSize size;
  int32_t padded;

  // Tiles of a step of this bucket, at most.
  int64_t most_tiles(const CudaBucket& bucket, TileSize tile) const {
    const int64_t rows = size.most_rows(bucket);
    const int64_t columns = (constant.n + tile.columns - 1) / tile.columns;
    return (rows / tile.rows + std::min<int64_t>(rows, size.experts)) * columns;
  }
};

// `smallest`: tiles of the most that the kernel cuts an expert into.
CudaKernel grouped_kernel(void (*kernel)(GroupedArgs), const GroupedShape& shape, TileSize smallest,
                          int blocks_per_sm, unsigned threads, int64_t shared_bytes) {
  return per_rank(
      kernel,
      [=](const CudaLaunch& launch) {
        const int64_t tiles = shape.most_tiles(launch.bucket, smallest);
        return row_shape(launch, blocks_for(launch, tiles, blocks_per_sm), threads,
                         static_cast<size_t>(shared_bytes));
      },
      [=](const CudaLaunch& launch, const CudaRank&, const CudaOperands& at) {
        GroupedArgs args{.matmul = shape.constant,
                         .rows = shape.size.rows(at.in[1]),
                         .padded = shape.padded,
                         .sm_budget = launch.sm_budget};
        args.matmul.x = at.in[0];
        args.matmul.w = at.in[2];
        args.matmul.bias = reinterpret_cast<const float*>(at.in[3]);
        args.matmul.y = at.out[0];
        return args;
      },
      shared_bytes);
}

template <typename T>
CudaKernel make_tiles(const GroupedShape& shape) {
  return grouped_kernel(grouped_tile_kernel<T>, shape, {SmallTile::kRows, SmallTile::kColumns},
                        GroupedTileConfig::kBlocksPerSm, GroupedTileConfig::kThreads,
                        schedule_bytes(shape.size.experts) + GroupedTileConfig::kRingBytes);
}

template <typename T, int kRowTiles, int kXTiles>
CudaKernel make_stream(const GroupedShape& shape) {
  return grouped_kernel(grouped_stream_kernel<T, kRowTiles, kXTiles>, shape,
                        {INT32_MAX / 2, StreamBlock<T, kRowTiles, kXTiles>::kWeightRows},
                        GroupedStreamConfig::kBlocksPerSm, StreamConfig::kThreads,
                        stream_shared_bytes<T, kRowTiles, kXTiles>(shape.size.experts));
}

CudaKernel make_simt(const GroupedShape& shape) {
  return grouped_kernel(grouped_simt_kernel, shape, {SimtConfig::kTile, SimtConfig::kTile},
                        GroupedSimtConfig::kBlocksPerSm, SimtConfig::kThreads,
                        simt_shared_bytes(shape.size.experts));
}

// By the rows an expert can have in the bucket.
template <typename T>
CudaKernel make_tensor_core(const GroupedShape& shape, bool deterministic) {
  CudaKernel tiles = make_tiles<T>(shape);
  if (deterministic) return tiles;
  const CudaKernel streams[] = {make_stream<T, 2, 1>(shape), make_stream<T, 2, 2>(shape),
                                make_stream<T, 1, 4>(shape)};
  CudaKernel all{
      .launch =
          [=, size = shape.size, tiles = tiles.launch, one = streams[0].launch,
           two = streams[1].launch, four = streams[2].launch](const CudaLaunch& launch) {
            const int64_t rows = size.most_of_expert(launch.bucket);
            (rows <= 8 ? one : rows <= 16 ? two : rows <= kStreamRows ? four : tiles)(launch);
          },
      .workspace_bytes = nullptr,
      .functions = tiles.functions};
  for (const CudaKernel& stream : streams)
    all.functions.insert(all.functions.end(), stream.functions.begin(), stream.functions.end());
  return all;
}

}  // namespace

CudaKernel prepare_cuda_grouped_matmul(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& w = *op.input(2);
  const BufferDesc& y = op.output(0);
  op.require(x.cols() <= INT32_MAX / 2 && y.cols() <= INT32_MAX / 2, "the matrix is too large");
  GroupedShape shape{.constant = {}, .size = grouped_size(op), .padded = 0};
  shape.padded = static_cast<int32_t>(w.max_rows() / shape.size.experts);
  shape.constant.x_dtype = x.dtype;
  shape.constant.w_dtype = w.dtype;
  shape.constant.y_dtype = y.dtype;
  shape.constant.n = static_cast<int32_t>(y.cols());
  shape.constant.k = static_cast<int32_t>(x.cols());
  shape.constant.x_pitch = shape.constant.k;
  shape.constant.y_pitch = shape.constant.n;
  const bool tensor_cores = x.dtype == w.dtype && x.dtype != DType::kF32 && x.cols() % 8 == 0 &&
                            (y.dtype == x.dtype || y.dtype == DType::kF32);
  if (!tensor_cores) return make_simt(shape);
  return x.dtype == DType::kBf16 ? make_tensor_core<bf16>(shape, plan.deterministic)
                                 : make_tensor_core<f16>(shape, plan.deterministic);
}

}  // namespace nanoweave
