// What every kernel includes: CUDA's vocabulary (or the emulation's), dynamic shared memory, and
// sums over a warp and a block. Kernels use dynamic shared memory only, so that one launch contract
// covers every architecture and the emulation can guard it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(NANOWEAVE_EMULATION)
#include "cuda/emulation/simt.h"
#else
#include <cuda_runtime.h>
#endif

#include "core/dtype.h"

namespace nanoweave {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullWarp = 0xffffffffu;

// The block's dynamic shared memory as a T; the launch asks for at least `bytes`, which covers a
// trailing array.
template <typename T>
__device__ __forceinline__ T& shared_memory([[maybe_unused]] size_t bytes = sizeof(T)) {
  static_assert(alignof(T) <= 128);
#if defined(NANOWEAVE_EMULATION)
  return *static_cast<T*>(emulation::Machine::instance().shared_memory(bytes));
#else
  extern __shared__ __align__(128) unsigned char nanoweave_shared_memory[];
  return *reinterpret_cast<T*>(nanoweave_shared_memory);
#endif
}

__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Butterflies: every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) value += __shfl_xor_sync(kFullWarp, value, bit);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, bit));
  return value;
}

// Sum over the block, the same bits in every thread. `scratch` holds a float per warp and is free
// again after the next block barrier; two sums in a row need two scratches or a barrier between.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && kWarps <= kWarpSize);
  value = warp_sum(value);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp];
  return total;
}

// Sum of the values of all threads in front of this one; `total` of all. `scratch` holds an int per
// warp and is free again after the next block barrier.
template <int kThreads>
__device__ __forceinline__ int block_prefix(int value, int32_t* scratch, int* total) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && kWarps <= kWarpSize);
  int sum = value;
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const int before = __shfl_up_sync(kFullWarp, sum, delta);
    if (lane_index() >= delta) sum += before;
  }
  if (lane_index() == kWarpSize - 1) scratch[warp_index()] = sum;
  __syncthreads();
  int prefix = sum - value;
  *total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_index()) prefix += scratch[warp];
    *total += scratch[warp];
  }
  return prefix;
}

}  // namespace nanoweave
