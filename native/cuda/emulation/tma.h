// The functions of tma.cuh, emulated (async_proxy.h).
#pragma once

#include "cuda/emulation/async_proxy.h"

namespace nanoweave::ptx {

inline constexpr bool kHasWgmma = true;

inline uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }

inline std::byte* barrier_bytes(BlockBarrier& barrier) {
  return reinterpret_cast<std::byte*>(&barrier);
}
inline void init_barrier(BlockBarrier& barrier, int count, Where where = Where::current()) {
  emulation::init_block_barrier(barrier_bytes(barrier), count, where);
}
inline void publish_barriers() { emulation::publish_block_barriers(); }
inline void arrive(BlockBarrier& barrier, Where where = Where::current()) {
  emulation::arrive_at_block_barrier(barrier_bytes(barrier), 0, where);
}
inline void arrive_and_expect(BlockBarrier& barrier, int bytes, Where where = Where::current()) {
  emulation::arrive_at_block_barrier(barrier_bytes(barrier), bytes, where);
}
inline void wait_for(BlockBarrier& barrier, uint32_t parity, const BlockWatch& watch,
                     uint32_t& given_up, Where where = Where::current()) {
  if (emulation::wait_for_block_barrier(barrier_bytes(barrier), parity, where)) return;
  const uint32_t start = block_clock();
  while (!emulation::has_ended(barrier_bytes(barrier), parity, where))
    if (gives_up(watch, start, given_up)) return;
}

inline void fence_async_proxy() {}

inline void sync_threads(int id, int threads, Where where = Where::current()) {
  Machine::instance().block_barrier(static_cast<unsigned>(id), static_cast<unsigned>(threads), true,
                                    true, true, where);
}

inline void prefetch_tensor_map(const TensorMap&) {}

inline void copy_box(void* to, const TensorMap& map, BlockBarrier& barrier, int x, int y,
                     Where where = Where::current()) {
  emulation::start_box_copy(to, map, 2, barrier_bytes(barrier), {x, y, 0}, where);
}
inline void copy_box(void* to, const TensorMap& map, BlockBarrier& barrier, int x, int y, int z,
                     Where where = Where::current()) {
  emulation::start_box_copy(to, map, 3, barrier_bytes(barrier), {x, y, z}, where);
}

template <int kCount>
void shrink_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}
template <int kCount>
void grow_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256);
}

}  // namespace nanoweave::ptx
