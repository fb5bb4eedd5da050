// Hopper's copy engine and the barriers its copies complete on (sm_90), and what warps that
// specialise need: registers moved between warpgroups, barriers of one warpgroup.
// emulation/tma.h holds the same functions for the emulation.
//
// A wait on a BlockBarrier ends by arrivals and copies of the same block; where they do not come,
// by the deadline of its BlockWatch.
#pragma once

#include "cuda/block_watch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"

namespace nanoweave::ptx {

// In shared memory; its content is the hardware's. Counts arrivals and bytes of copies; a phase
// ends when `count` arrivals and all expected bytes are there, and the next one begins.
struct alignas(8) BlockBarrier {
  uint64_t state;
};

inline constexpr int kSwizzleBytes = 1024;  // the pattern of a 128-byte swizzle repeats

}  // namespace nanoweave::ptx

#if defined(NANOWEAVE_EMULATION)
#include "cuda/emulation/tma.h"
#else

namespace nanoweave::ptx {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;  // wgmma and setmaxnreg are sm_90a's alone
#endif

// ---- Barriers -----------------------------------------------------------------------------------

__device__ __forceinline__ void init_barrier(BlockBarrier& barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(count)
               : "memory");
}
// Makes this thread's init_barrier() visible to the copy engine; a block barrier must follow.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(BlockBarrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
}
// Arrives, and lets the phase wait for `bytes` more bytes of copies.
__device__ __forceinline__ void arrive_and_expect(BlockBarrier& barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}
// Whether the phase of this parity has ended; sleeps for a while, as long as the hardware likes.
__device__ __forceinline__ bool try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
// Returns once the phase of this parity has ended: at once for 1 before the first phase has.
__device__ __forceinline__ void wait_for(BlockBarrier& barrier, uint32_t parity,
                                         const BlockWatch& watch, uint32_t& given_up) {
  const uint32_t address = shared_address(&barrier);
  if (try_wait(address, parity)) return;
  const uint32_t start = block_clock();
  while (!try_wait(address, parity))
    if (gives_up(watch, start, given_up)) return;
}

// Ordinary stores of this thread to shared memory before it are visible to copies and to wgmma
// after it, once a barrier has passed.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A barrier of `threads` threads of the block. `id`: 1..15.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Copies -------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One thread starts the copy of a box; its bytes, those outside of the tensor included, count on
// `barrier`. Coordinates in elements, innermost first; `to`: 128-byte aligned.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, BlockBarrier& barrier,
                                         int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, BlockBarrier& barrier,
                                         int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// ---- Registers ----------------------------------------------------------------------------------

// All warps of a warpgroup, once: from now on each thread has kCount registers (multiple of 8).
template <int kCount>
__device__ __forceinline__ void shrink_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void grow_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

}  // namespace nanoweave::ptx

#endif

namespace nanoweave::ptx {

// The first address from `memory` on where a swizzle pattern begins.
template <typename T>
__device__ __forceinline__ T* align_to_swizzle(void* memory) {
  const uint32_t past = shared_address(memory) % kSwizzleBytes;
  return reinterpret_cast<T*>(static_cast<unsigned char*>(memory) +
                              (past == 0 ? 0 : kSwizzleBytes - past));
}

// A place in a ring of kStages buffers, and the parity of its phase there.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace nanoweave::ptx
