// A block's tile of a matmul on tensor cores, 16-bit operands: kRows × kColumns of y from tiles of
// kDepth columns of x and W that pass through a ring in shared memory (cp.async, kStages deep, one
// block barrier per tile). Sums run over k in steps of 16 from the first to the last in one
// accumulator, whatever the tile sizes, so a row's bits depend neither on the number of rows nor on
// which form is chosen.
#pragma once

#include "ops/matmul.cuh"

namespace nanoweave {

template <int kRows_, int kColumns_, int kDepth_, int kStages_, int kRowWarps_, int kColumnWarps_>
struct TileConfig {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_, kStages = kStages_;
  static constexpr int kRowWarps = kRowWarps_, kColumnWarps = kColumnWarps_;
  static constexpr int kThreads = kRowWarps * kColumnWarps * kWarpSize;
  static constexpr int kRowTiles = kRows / kRowWarps / 16;          // of a warp, 16 rows each
  static constexpr int kColumnTiles = kColumns / kColumnWarps / 8;  // of a warp, 8 columns each
  static constexpr int kPitch = kDepth + 8;  // an odd number of 16-byte pieces: no bank conflicts
  static constexpr int kStageElements = (kRows + kColumns) * kPitch;
  static constexpr int kSharedBytes = 2 * kStages * kStageElements;
  static_assert(kRowTiles * 16 * kRowWarps == kRows && kColumnTiles * 8 * kColumnWarps == kColumns);
  static_assert(kColumnTiles % 2 == 0 && kDepth % 16 == 0 && kPitch / 8 % 2 == 1);
  static_assert(kSharedBytes <= 99 << 10, "more than sm_89 has");
};

using LargeTile = TileConfig<128, 128, 32, 4, 2, 2>;
using MediumTile = TileConfig<64, 64, 64, 4, 2, 2>;
using SmallTile = TileConfig<16, 64, 128, 4, 1, 4>;

struct TileShared {
  alignas(16) unsigned char bytes[1];
};

template <typename T, typename Config>
class TileBlock {
 public:
  __device__ TileBlock(const MatmulArgs& args, T* shared, RowRange rows, int row, int column)
      : args_(args), shared_(shared), rows_(rows), row_(row), column_(column) {}

  __device__ void run() {
    float sums[Config::kRowTiles][Config::kColumnTiles][4] = {};
    const int tiles = (args_.k + Config::kDepth - 1) / Config::kDepth;
    for (int ahead = 0; ahead < Config::kStages - 1; ++ahead) fetch(ahead, tiles);
    for (int tile = 0; tile < tiles; ++tile) {
      ptx::wait_for_copies<Config::kStages - 2>();
      __syncthreads();  // the tile is there; all are done with the one before
      fetch(tile + Config::kStages - 1, tiles);
      multiply(shared_ + tile % Config::kStages * Config::kStageElements, sums);
    }
    store(sums);
  }

 private:
  // Starts the copies of a tile of x and of W; what lies outside of them is zero. Every call is one
  // group, also past the end.
  __device__ void fetch(int tile, int tiles) {
    if (tile < tiles) {
      T* to = shared_ + tile % Config::kStages * Config::kStageElements;
      const int first = tile * Config::kDepth;
      fetch_rows<Config::kRows>(
          to, reinterpret_cast<const T*>(args_.x) + int64_t{rows_.begin} * args_.x_pitch,
          args_.x_pitch, row_, rows_.count, first);
      fetch_rows<Config::kColumns>(to + Config::kRows * Config::kPitch,
                                   reinterpret_cast<const T*>(args_.w), args_.k, column_, args_.n,
                                   first);
    }
    ptx::commit_copies();
  }
  template <int kCount>
  __device__ __forceinline__ void fetch_rows(T* to, const T* from, int64_t pitch, int first_row,
                                             int num_rows, int first) {
    constexpr int kChunks = Config::kDepth / 8;  // 16-byte pieces of a row
#pragma unroll
    for (int chunk = threadIdx.x; chunk < kCount * kChunks; chunk += Config::kThreads) {
      const int row = chunk / kChunks, column = chunk % kChunks * 8;
      const bool exists = first_row + row < num_rows && first + column < args_.k;
      const int64_t at = exists ? (first_row + row) * pitch + first + column : int64_t{0};
      ptx::copy_async16(to + row * Config::kPitch + column, from + at, exists ? 16 : 0);
    }
  }

  __device__ __forceinline__ void multiply(
      const T* stage, float (&sums)[Config::kRowTiles][Config::kColumnTiles][4]) const {
    const int lane = lane_index();
    const T* x = stage + (row_warp() * Config::kRowTiles * 16 + (lane & 15)) * Config::kPitch +
                 (lane >> 4) * 8;
    const T* w =
        stage +
        (Config::kRows + column_warp() * Config::kColumnTiles * 8 + (lane & 7) + (lane >> 4) * 8) *
            Config::kPitch +
        (lane >> 3 & 1) * 8;
#pragma unroll
    for (int k = 0; k < Config::kDepth; k += 16) {
      uint32_t a[Config::kRowTiles][4];
#pragma unroll
      for (int r = 0; r < Config::kRowTiles; ++r)
        ptx::load_matrices(a[r], x + r * 16 * Config::kPitch + k);
#pragma unroll
      for (int c = 0; c < Config::kColumnTiles; c += 2) {
        uint32_t b[4];
        ptx::load_matrices(b, w + c * 8 * Config::kPitch + k);
#pragma unroll
        for (int r = 0; r < Config::kRowTiles; ++r) {
          ptx::multiply_add<T>(sums[r][c], a[r], b[0], b[1]);
          ptx::multiply_add<T>(sums[r][c + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  __device__ void store(const float (&sums)[Config::kRowTiles][Config::kColumnTiles][4]) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < Config::kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_ + (row_warp() * Config::kRowTiles + r) * 16 + g + 8 * half;
        if (row >= rows_.count) continue;
#pragma unroll
        for (int c = 0; c < Config::kColumnTiles; ++c) {
          const int column = column_ + (column_warp() * Config::kColumnTiles + c) * 8 + t * 2;
          store_pair<T>(args_, rows_.begin + int64_t{row}, column, sums[r][c][2 * half],
                        sums[r][c][2 * half + 1]);
        }
      }
  }

  __device__ int row_warp() const { return warp_index() / Config::kColumnWarps; }
  __device__ int column_warp() const { return warp_index() % Config::kColumnWarps; }

  const MatmulArgs& args_;
  T* shared_;
  RowRange rows_;
  int row_, column_;  // first of the block; rows count from the op's first
};

}  // namespace nanoweave
