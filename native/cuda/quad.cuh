// Exchanges among the four lanes that share a row of a tensor-core accumulator.
#pragma once

#include "cuda/simt.cuh"

namespace nanoweave {

// Transposes the 4×4 words that the lanes 4g..4g+3 hold, each a row. An accumulator of four tiles
// of 8 columns, two 16-bit columns a word and lane, becomes 8 neighbouring columns of one tile in
// each lane: 16 bytes to store at once.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
  const bool high = (lane_index() & 2) != 0, odd = (lane_index() & 1) != 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(kFullWarp, high ? words[i] : words[i + 2], 2);
    words[i] = high ? other : words[i];
    words[i + 2] = high ? words[i + 2] : other;
  }
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(kFullWarp, odd ? words[i] : words[i + 1], 1);
    words[i] = odd ? other : words[i];
    words[i + 1] = odd ? words[i + 1] : other;
  }
}

}  // namespace nanoweave
