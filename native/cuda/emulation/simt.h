// CUDA's vocabulary for the emulation: the kernels' source compiles as C++ against this header in
// place of cuda_runtime.h. Only what the kernels use is here.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/emulation/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

namespace nanoweave {

namespace emulation {

// Of the running thread; set whenever one is resumed.
extern Index3 threadIdx, blockIdx, blockDim, gridDim;

// What a warp shuffle exchanges.
template <typename T>
struct Shuffle {
  T value;
  int source;  // lane
};

template <typename T>
T shuffle(const char* name, uint32_t mask, T value, int source, const Where& where) {
  Machine& machine = Machine::instance();
  Shuffle<T> data{value, source};
  machine.warp_operation(
      name, mask, data,
      [&](std::array<Shuffle<T>*, 32>& lanes) {
        std::array<T, 32> values;
        for (int i = 0; i < 32; ++i)
          if (lanes[i] != nullptr) values[i] = lanes[i]->value;
        for (Shuffle<T>* lane : lanes) {
          if (lane == nullptr) continue;
          if (lanes[lane->source] == nullptr)
            machine.fail("a shuffle reads a lane that is not in its mask", where);
          lane->value = values[lane->source];
        }
      },
      where);
  return data.value;
}

template <typename T, typename Combine>
T reduce(const char* name, uint32_t mask, T value, const Combine& combine, const Where& where) {
  T data = value;
  Machine::instance().warp_operation(
      name, mask, data,
      [&](std::array<T*, 32>& lanes) {
        bool first = true;
        T total{};
        for (const T* lane : lanes) {
          if (lane == nullptr) continue;
          total = first ? *lane : combine(total, *lane);
          first = false;
        }
        for (T* lane : lanes)
          if (lane != nullptr) *lane = total;
      },
      where);
  return data;
}

inline int lane() { return static_cast<int>(Machine::instance().self().lane); }

}  // namespace emulation

using std::max;
using std::min;

using emulation::blockDim;
using emulation::blockIdx;
using emulation::gridDim;
using emulation::threadIdx;

inline void __syncthreads(emulation::Where where = emulation::Where::current()) {
  emulation::Machine::instance().block_barrier(0, 0, true, true, true, where);
}
inline int __syncthreads_and(int value, emulation::Where where = emulation::Where::current()) {
  return emulation::Machine::instance().block_barrier(0, 0, true, value != 0, true, where);
}
inline int __syncthreads_or(int value, emulation::Where where = emulation::Where::current()) {
  return emulation::Machine::instance().block_barrier(0, 0, true, value != 0, false, where);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       emulation::Where where = emulation::Where::current()) {
  int nothing = 0;
  emulation::Machine::instance().warp_operation(
      "__syncwarp", mask, nothing, [](std::array<int*, 32>&) {}, where);
}
inline void __threadfence() { emulation::Machine::instance().thread_fence(); }
inline void __threadfence_system() { emulation::Machine::instance().thread_fence(); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source,
              emulation::Where where = emulation::Where::current()) {
  return emulation::shuffle("__shfl_sync", mask, value, source & 31, where);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits,
                  emulation::Where where = emulation::Where::current()) {
  return emulation::shuffle("__shfl_xor_sync", mask, value, (emulation::lane() ^ bits) & 31, where);
}
// A lane whose source would be outside the warp keeps its own value.
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int delta,
                 emulation::Where where = emulation::Where::current()) {
  const int lane = emulation::lane();
  return emulation::shuffle("__shfl_up_sync", mask, value, lane < delta ? lane : lane - delta,
                            where);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int delta,
                   emulation::Where where = emulation::Where::current()) {
  const int lane = emulation::lane();
  return emulation::shuffle("__shfl_down_sync", mask, value,
                            lane + delta > 31 ? lane : lane + delta, where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              emulation::Where where = emulation::Where::current()) {
  const uint32_t bit = predicate != 0 ? 1u << emulation::lane() : 0u;
  return emulation::reduce(
      "__ballot_sync", mask, bit, [](uint32_t a, uint32_t b) { return a | b; }, where);
}
inline int __any_sync(uint32_t mask, int predicate,
                      emulation::Where where = emulation::Where::current()) {
  return emulation::reduce(
      "__any_sync", mask, predicate != 0 ? 1 : 0, [](int a, int b) { return a | b; }, where);
}
// Lanes of the mask that have this lane's value.
inline uint32_t __match_any_sync(uint32_t mask, int value,
                                 emulation::Where where = emulation::Where::current()) {
  struct Match {
    int value;
    uint32_t lanes;
  } data{value, 0};
  emulation::Machine::instance().warp_operation(
      "__match_any_sync", mask, data,
      [](std::array<Match*, 32>& lanes) {
        for (Match* lane : lanes)
          for (int other = 0; lane != nullptr && other < 32; ++other)
            if (lanes[other] != nullptr && lanes[other]->value == lane->value)
              lane->lanes |= 1u << other;
      },
      where);
  return data.lanes;
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value,
                                  emulation::Where where = emulation::Where::current()) {
  return emulation::reduce(
      "__reduce_add_sync", mask, value, [](uint32_t a, uint32_t b) { return a + b; }, where);
}

// One operating-system thread runs all fibers, so plain arithmetic is atomic. Another thread may
// run before and after.
template <typename T>
T atomicAdd(T* address, T value) {
  emulation::Machine::instance().yield();
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  emulation::Machine::instance().yield();
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  emulation::Machine::instance().yield();
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
template <typename T>
T atomicCAS_system(T* address, T expected, T value) {
  return atomicCAS(address, expected, value);
}

inline int __popc(uint32_t value) { return std::popcount(value); }
inline int __ffs(uint32_t value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline int __clz(uint32_t value) { return std::countl_zero(value); }
inline void __nanosleep(unsigned) { emulation::Machine::instance().yield(); }

}  // namespace nanoweave
