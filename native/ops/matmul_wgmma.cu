// Matmul on Hopper's tensor cores (sm_90a): one warpgroup fetches, two multiply. The first warp of
// the fetching group has the copy engine bring tiles of 64 columns of x and W into a ring of
// kStages buffers (128-byte swizzle, zeros past the ends of N and K); each of the others keeps 64
// rows (or its columns) of the tile's sums in registers and multiplies straight from the ring.
// Blocks stay and take tile after tile, so that the next tile's operands arrive while sums are
// stored.
//
// Who waits for whom: full[stage] counts the copies' bytes; empty[stage] the eight multiplying
// warps, each once its products of that stage have ended. Sums run over k in steps of 16 in one
// accumulator. Rows of x beyond the step's are read within the buffer (their sums are dropped) and
// rows of y beyond them are not written.
//
// Floor: 2·T·N·K flops at 4096 a clock and multiprocessor; x and W once each while a band of tiles
// shares them in L2, y once. Stays in the rank. Not yet run on a GPU.
#include "cuda/quad.cuh"
#include "cuda/wgmma.cuh"
#include "ops/matmul.cuh"

namespace nanoweave {

namespace {

// The multiplying warpgroups side by side: kRowGroups × kColumnGroups, each 64 × kGroupColumns.
template <int kRowGroups_, int kColumnGroups_, int kGroupColumns_, int kStages_>
struct WgmmaConfig {
  static constexpr int kRowGroups = kRowGroups_, kColumnGroups = kColumnGroups_;
  static constexpr int kGroupColumns = kGroupColumns_, kStages = kStages_;
  static constexpr int kRows = 64 * kRowGroups, kColumns = kGroupColumns * kColumnGroups;
  static constexpr int kDepth = 64;  // 128 bytes: a row of the swizzle pattern
  static constexpr int kGroups = kRowGroups * kColumnGroups;
  static constexpr int kThreads = 128 * (1 + kGroups);
  static constexpr int kStageElements = (kRows + kColumns) * kDepth;
  static constexpr int kStageBytes = 2 * kStageElements;
  static_assert(kGroups == 2, "the split of registers below");
  static_assert(kRows <= 256 && kColumns <= 256, "a box of the copy engine");
  static_assert(kRows * kDepth * 2 % ptx::kSwizzleBytes == 0 &&
                kStageBytes % ptx::kSwizzleBytes == 0);
};

using WideTile = WgmmaConfig<2, 1, 256, 4>;    // 128 × 256
using SquareTile = WgmmaConfig<2, 1, 128, 6>;  // 128 × 128
using ShortTile = WgmmaConfig<1, 2, 64, 8>;    // 64 × 128

// Registers: a block keeps what it was launched with, 384 threads of 168; asking for more would
// wait for ever.
constexpr int kFetchRegisters = 40, kMultiplyRegisters = 232;
static_assert(128 * (kFetchRegisters + 2 * kMultiplyRegisters) <= 384 * 168);

template <typename T, typename Config>
struct WgmmaShared {
  T stages[Config::kStages][Config::kStageElements];  // x, then W
  ptx::BlockBarrier full[Config::kStages];
  ptx::BlockBarrier empty[Config::kStages];
  uint32_t given_up;  // 1: a wait did not end
};
template <typename Config>
constexpr int kWgmmaSharedBytes = sizeof(WgmmaShared<bf16, Config>) + ptx::kSwizzleBytes;

struct WgmmaArgs {
  TensorMap x;  // [x_rows, k], boxes of kRows
  TensorMap w;  // [n, k], boxes of kColumns
  MatmulArgs matmul;
  BlockWatch watch;
};

template <typename T, typename Config>
class WgmmaBlock {
 public:
  using Shared = WgmmaShared<T, Config>;
  static constexpr int kTiles = Config::kGroupColumns / 8;

  __device__ WgmmaBlock(const WgmmaArgs& args, Shared& shared, RowRange rows)
      : args_(args),
        shared_(shared),
        rows_(rows),
        row_tiles_((rows.count + Config::kRows - 1) / Config::kRows),
        column_tiles_((args.matmul.n + Config::kColumns - 1) / Config::kColumns),
        steps_((args.matmul.k + Config::kDepth - 1) / Config::kDepth) {}

  // One thread.
  __device__ void init() {
    shared_.given_up = 0;
    for (int stage = 0; stage < Config::kStages; ++stage) {
      ptx::init_barrier(shared_.full[stage], 1);
      ptx::init_barrier(shared_.empty[stage], Config::kGroups * 4);
    }
    ptx::publish_barriers();
    ptx::prefetch_tensor_map(args_.x);
    ptx::prefetch_tensor_map(args_.w);
  }

  // One thread.
  __device__ void fetch() {
    for (int index = blockIdx.x; index < num_tiles(); index += gridDim.x) {
      const TilePlace place = place_tile(index, row_tiles_, column_tiles_);
      for (int step = 0; step < steps_; ++step, place_.advance()) {
        ptx::BlockBarrier& full = shared_.full[place_.stage];
        T* to = shared_.stages[place_.stage];
        wait(shared_.empty[place_.stage], place_.parity ^ 1);
        if (has_given_up()) return;
        ptx::arrive_and_expect(full, Config::kStageBytes);
        ptx::copy_box(to, args_.x, full, step * Config::kDepth,
                      rows_.begin + place.row * Config::kRows);
        ptx::copy_box(to + Config::kRows * Config::kDepth, args_.w, full, step * Config::kDepth,
                      place.column * Config::kColumns);
      }
    }
  }

  // Warpgroup `group` of the multiplying ones.
  __device__ void multiply(int group) {
    const int row_group = group / Config::kColumnGroups;
    const int column_group = group % Config::kColumnGroups;
    for (int index = blockIdx.x; index < num_tiles(); index += gridDim.x) {
      const TilePlace place = place_tile(index, row_tiles_, column_tiles_);
      float sums[kTiles][4];
      multiply_tile(sums, row_group * 64 * Config::kDepth,
                    (Config::kRows + column_group * Config::kGroupColumns) * Config::kDepth);
      store(sums, place.row * Config::kRows + row_group * 64,
            place.column * Config::kColumns + column_group * Config::kGroupColumns);
    }
  }

 private:
  __device__ __forceinline__ void wait(ptx::BlockBarrier& barrier, uint32_t parity) {
    ptx::wait_for(barrier, parity, args_.watch, shared_.given_up);
  }
  __device__ bool has_given_up() const {
    return *static_cast<const volatile uint32_t*>(&shared_.given_up) != 0;
  }
  __device__ int num_tiles() const { return row_tiles_ * column_tiles_; }

  // x_at, w_at: of the group's operands within a stage.
  __device__ __forceinline__ void multiply_tile(float (&sums)[kTiles][4], int x_at, int w_at) {
    int last = 0;
    for (int step = 0; step < steps_; ++step, place_.advance()) {
      wait(shared_.full[place_.stage], place_.parity);
      const uint64_t x = ptx::describe_rows(shared_.stages[place_.stage] + x_at);
      const uint64_t w = ptx::describe_rows(shared_.stages[place_.stage] + w_at);
      ptx::pin(sums);
      ptx::begin_products();
#pragma unroll
      for (int k = 0; k < Config::kDepth; k += 16)
        ptx::multiply_rows<T, Config::kGroupColumns>(sums, ptx::move_descriptor(x, k * 2),
                                                     ptx::move_descriptor(w, k * 2),
                                                     step > 0 || k > 0);
      ptx::commit_products();
      // The stage before this one has been read; this one's products go on.
      ptx::wait_for_products<1>();
      if (step > 0) release(last);
      last = place_.stage;
    }
    ptx::wait_for_products<0>();
    ptx::pin(sums);
    release(last);
  }
  __device__ __forceinline__ void release(int stage) {
    if (lane_index() == 0) ptx::arrive(shared_.empty[stage]);
  }

  // The sums of this group, whose first row (of the op's) and column these are.
  __device__ __forceinline__ void store(const float (&sums)[kTiles][4], int first_row,
                                        int first_column) const {
    const MatmulArgs& matmul = args_.matmul;
    const int t = lane_index() % 4;
    const bool vectors = matmul.y_dtype != DType::kF32 && matmul.n % 8 == 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_index() % 4 * 16 + lane_index() / 4 + 8 * half;
      const int64_t y_row = rows_.begin + int64_t{row};
      if (vectors) {
#pragma unroll
        for (int j = 0; j < kTiles; j += 4)
          store_vectors(sums, j, half, row < rows_.count, y_row, first_column);
      } else if (row < rows_.count) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
          store_pair<T>(matmul, y_row, first_column + j * 8 + t * 2, sums[j][2 * half],
                        sums[j][2 * half + 1]);
      }
    }
  }
  // Tiles j..j+3 of a row: a 16-byte store per lane. All lanes of the warp take part.
  __device__ __forceinline__ void store_vectors(const float (&sums)[kTiles][4], int j, int half,
                                                bool exists, int64_t row, int first_column) const {
    const MatmulArgs& matmul = args_.matmul;
    const int t = lane_index() % 4;
    Vec16 vec;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Past the last column the sum is zero and is dropped below; there is no bias.
      const int column = min(first_column + (j + i) * 8 + t * 2, matmul.n - 2);
      vec.words[i] = pack2<T>(finish_sum(matmul, column, sums[j + i][2 * half]),
                              finish_sum(matmul, column + 1, sums[j + i][2 * half + 1]));
    }
    transpose_quad(vec.words);
    const int column = first_column + (j + t) * 8;
    if (!exists || column >= matmul.n) return;
    *reinterpret_cast<Vec16*>(reinterpret_cast<T*>(matmul.y) + row * matmul.n + column) = vec;
  }

  const WgmmaArgs& args_;
  Shared& shared_;
  const RowRange rows_;
  const int row_tiles_, column_tiles_, steps_;
  ptx::RingPlace<Config::kStages> place_;
};

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    matmul_wgmma_kernel(const __grid_constant__ WgmmaArgs args) {
  if constexpr (ptx::kHasWgmma) {
    using Block = WgmmaBlock<T, Config>;
    auto& shared = *ptx::align_to_swizzle<typename Block::Shared>(
        &shared_memory<unsigned char>(kWgmmaSharedBytes<Config>));
    ptx::wait_for_previous_kernel();
    ptx::allow_next_kernel();
    Block block(args, shared, rows_of(args.matmul.rows));
    if (threadIdx.x == 0) block.init();
    __syncthreads();
    const int group = warp_index() / 4;
    if (group == 0) {
      ptx::shrink_registers<kFetchRegisters>();
      if (threadIdx.x == 0) block.fetch();
    } else {
      ptx::grow_registers<kMultiplyRegisters>();
      block.multiply(group - 1);
    }
  }
}

TensorMap rows_map(DType dtype, const std::byte* base, int64_t rows, int64_t cols, int box_rows) {
  return make_tensor_map({.dtype = dtype,
                          .base = base,
                          .rank = 2,
                          .sizes = {cols, rows, 1},
                          .strides = {cols * 2, 0},
                          .box = {64, box_rows, 1}});
}

template <typename T, typename Config>
void launch_wgmma(const MatmulShape& shape, const CudaLaunch& launch) {
  const int64_t rows = most_rows(launch.bucket, shape.which);
  const MatmulArgs& constant = shape.constant;
  const int64_t tiles = (rows + Config::kRows - 1) / Config::kRows *
                        ((constant.n + Config::kColumns - 1) / Config::kColumns);
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    const MatmulArgs args = matmul_args(shape, launch.ranks[i], launch.operands[i]);
    nanoweave::launch(
        matmul_wgmma_kernel<T, Config>,
        row_shape(launch, blocks_for(launch, tiles, 1), Config::kThreads,
                  kWgmmaSharedBytes<Config>),
        launch.stream,
        WgmmaArgs{.x = rows_map(args.x_dtype, args.x, shape.x_rows, args.k, Config::kRows),
                  .w = rows_map(args.w_dtype, args.w, args.n, args.k, Config::kColumns),
                  .matmul = args,
                  .watch = block_watch(launch, launch.ranks[i])});
  }
}

// Rounds of tiles over the lane's multiprocessors, weighted by what a tile costs. The weights are
// priors: a smaller tile reads more of shared memory per flop.
template <typename Config>
double predict_cost(const CudaLaunch& launch, int64_t rows, int64_t n, double weight) {
  const int64_t tiles =
      (rows + Config::kRows - 1) / Config::kRows * ((n + Config::kColumns - 1) / Config::kColumns);
  const int64_t sms = std::max(launch.sm_budget, 1);
  return static_cast<double>((tiles + sms - 1) / sms) * Config::kRows * Config::kColumns * weight;
}

template <typename T>
CudaKernel make_wgmma(const MatmulShape& shape, bool deterministic) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                const int64_t rows = most_rows(launch.bucket, shape.which);
                const int64_t n = shape.constant.n;
                const double wide = predict_cost<WideTile>(launch, rows, n, 1.0);
                const double square = predict_cost<SquareTile>(launch, rows, n, 1.1);
                const double small = predict_cost<ShortTile>(launch, rows, n, 1.3);
                // One form for all rows when deterministic: no manual says that the instruction's
                // width leaves an element's bits alone.
                if (deterministic || (square < wide && square <= small))
                  launch_wgmma<T, SquareTile>(shape, launch);
                else if (wide <= small)
                  launch_wgmma<T, WideTile>(shape, launch);
                else
                  launch_wgmma<T, ShortTile>(shape, launch);
              },
          .workspace_bytes = nullptr,
          .functions = {
              cuda_function(matmul_wgmma_kernel<T, WideTile>, kWgmmaSharedBytes<WideTile>),
              cuda_function(matmul_wgmma_kernel<T, SquareTile>, kWgmmaSharedBytes<SquareTile>),
              cuda_function(matmul_wgmma_kernel<T, ShortTile>, kWgmmaSharedBytes<ShortTile>)}};
}

}  // namespace

CudaKernel matmul_wgmma(const MatmulShape& shape, bool deterministic) {
  if (shape.constant.x_dtype == DType::kBf16) return make_wgmma<bf16>(shape, deterministic);
  return make_wgmma<f16>(shape, deterministic);
}

}  // namespace nanoweave
