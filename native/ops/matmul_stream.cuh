// A block's share of a matmul of few rows: the weights are read once, straight from global memory
// into the operand registers of tensor cores. W is the operand with 16 rows, x the one with 8: a
// block computes kWeightRows columns of y for all rows of x, its warps take pieces of 64 columns of
// W in turn and add up at the end.
//
// An operand's lane wants columns 2t, 2t+1, 2t+8, 2t+9 of 16; instead it takes the 8 consecutive
// ones of its 16-byte load, of both W and x: the same permutation of k on both sides, which a sum
// does not see.
#pragma once

#include "ops/matmul.cuh"

namespace nanoweave {

struct StreamConfig {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kPiece = 64;  // columns of W a warp takes at a time: 128 bytes per row
  static constexpr int kLoads = kPiece / 32;  // 16-byte loads of a lane and row
};

// kRowTiles·16 rows of W against kXTiles·8 rows of x.
template <typename T, int kRowTiles, int kXTiles>
class StreamBlock {
 public:
  static constexpr int kWarps = StreamConfig::kWarps;
  static constexpr int kPiece = StreamConfig::kPiece;
  static constexpr int kLoads = StreamConfig::kLoads;
  static constexpr int kWeightRows = kRowTiles * 16;
  static constexpr int kXRows = kXTiles * 8;

  // Sums of the warps, [warp][x row][weight row].
  struct Shared {
    float sums[kWarps][kXRows][kWeightRows];
  };

  __device__ StreamBlock(const MatmulArgs& args, int first_column)
      : args_(args), first_column_(first_column) {}

  // Weights of this warp's piece `piece`; past the end: zero.
  __device__ __forceinline__ void load_weights(int piece) {
    const T* w = reinterpret_cast<const T*>(args_.w);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(first_column_ + r * 16 + half * 8 + lane_index() / 4, args_.n - 1);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          const int k = column_of(piece, i);
          weights_[r][half][i] =
              k < args_.k ? ptx::load_streaming(w + int64_t{row} * args_.k + k) : Vec16{};
        }
      }
  }

  // Rows [first, first + kXRows) of the op's rows; the weights of the warp's first piece are
  // loaded.
  __device__ void run(const RowRange& rows, int first, Shared& shared) {
    float sums[kRowTiles][kXTiles][4] = {};
    for (int piece = warp_index(); piece * kPiece < args_.k; piece += kWarps) {
      Vec16 x[kXTiles][kLoads];
      load_x(rows, first, piece, x);
      Vec16 weights[kRowTiles][2][kLoads];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < kLoads; ++i) weights[r][half][i] = weights_[r][half][i];
      load_weights(piece + kWarps);
      multiply(weights, x, sums);
    }
    put_sums(sums, shared);
    __syncthreads();  // all warps have left their sums
    store(rows, first, shared);
    __syncthreads();  // the sums may be overwritten
  }

 private:
  __device__ static int column_of(int piece, int load) {
    return piece * kPiece + load * 32 + lane_index() % 4 * 8;
  }

  __device__ __forceinline__ void load_x(const RowRange& rows, int first, int piece,
                                         Vec16 (&x)[kXTiles][kLoads]) const {
#pragma unroll
    for (int tile = 0; tile < kXTiles; ++tile) {
      const int row = first + tile * 8 + lane_index() / 4;
      const T* from = reinterpret_cast<const T*>(args_.x) + (rows.begin + int64_t{row}) * args_.k;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = column_of(piece, i);
        x[tile][i] =
            row < rows.count && k < args_.k ? *reinterpret_cast<const Vec16*>(from + k) : Vec16{};
      }
    }
  }

  __device__ __forceinline__ void multiply(const Vec16 (&weights)[kRowTiles][2][kLoads],
                                           const Vec16 (&x)[kXTiles][kLoads],
                                           float (&sums)[kRowTiles][kXTiles][4]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint32_t a[4] = {weights[r][0][i].words[2 * step], weights[r][1][i].words[2 * step],
                                 weights[r][0][i].words[2 * step + 1],
                                 weights[r][1][i].words[2 * step + 1]};
#pragma unroll
          for (int tile = 0; tile < kXTiles; ++tile)
            ptx::multiply_add<T>(sums[r][tile], a, x[tile][i].words[2 * step],
                                 x[tile][i].words[2 * step + 1]);
        }
  }

  __device__ void put_sums(const float (&sums)[kRowTiles][kXTiles][4], Shared& shared) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int tile = 0; tile < kXTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          shared.sums[warp_index()][tile * 8 + t * 2 + i % 2][r * 16 + g + i / 2 * 8] =
              sums[r][tile][i];
  }

  __device__ void store(const RowRange& rows, int first, const Shared& shared) const {
    constexpr int kPairs = kWeightRows / 2;
    for (int pair = threadIdx.x; pair < kXRows * kPairs; pair += StreamConfig::kThreads) {
      const int row = pair / kPairs, column = pair % kPairs * 2;
      if (first + row >= rows.count) return;
      float total[2] = {0, 0};
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        total[0] += shared.sums[warp][row][column];
        total[1] += shared.sums[warp][row][column + 1];
      }
      store_pair<T>(args_, rows.begin + int64_t{first + row}, first_column_ + column, total[0],
                    total[1]);
    }
  }

  const MatmulArgs& args_;
  const int first_column_;               // of y; row of W
  Vec16 weights_[kRowTiles][2][kLoads];  // of the next piece
};

}  // namespace nanoweave
