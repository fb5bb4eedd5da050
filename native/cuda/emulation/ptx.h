// The functions of ptx.cuh, emulated. Asynchronous copies happen at a random moment between issue
// and wait, so a missing wait and a buffer refilled too early both show. Stores to other ranks are
// held back until a release.
#pragma once

#include <algorithm>
#include <array>

#include "cuda/numeric.cuh"

namespace nanoweave::ptx {

using emulation::Machine;
using emulation::Where;

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

inline Vec16 load_streaming(const void* from) { return *static_cast<const Vec16*>(from); }

inline void store_remote(void* to, const Vec16& v) {
  Machine::instance().remote_store(static_cast<std::byte*>(to),
                                   reinterpret_cast<const std::byte*>(&v), sizeof v);
}
template <typename T>
void store_remote_element(T* to, T value) {
  Machine::instance().remote_store(reinterpret_cast<std::byte*>(to),
                                   reinterpret_cast<const std::byte*>(&value), sizeof value);
}

// A thread that polls gives way, so that spins end.
// Words that the host sees as well are atomic.
inline uint32_t load_acquire_system(const uint32_t* from) {
  Machine::instance().yield();
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline uint32_t load_relaxed_system(const uint32_t* from) {
  Machine::instance().yield();
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
inline void store_release_system(uint32_t* to, uint32_t value) {
  Machine::instance().yield();
  Machine::instance().thread_fence();
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
inline void store_relaxed_system(uint32_t* to, uint32_t value) {
  Machine::instance().yield();
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
inline uint32_t add_acquire_release(uint32_t* to, uint32_t value) {
  Machine::instance().yield();
  Machine::instance().thread_fence();
  const uint32_t old = *to;
  *to = old + value;
  return old;
}

inline uint64_t global_timer_ns() { return Machine::instance().clock_ns(); }

inline void copy_now(const emulation::PendingCopy& copy) {
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  std::memset(copy.to + copy.bytes, 0, static_cast<size_t>(16 - copy.bytes));
}

inline void copy_async16(void* to_shared, const void* from, int bytes = 16,
                         Where where = Where::current()) {
  Machine& machine = Machine::instance();
  emulation::Thread& self = machine.self();
  if (bytes < 0 || bytes > 16) machine.fail("an asynchronous copy of more than 16 bytes", where);
  if (reinterpret_cast<uintptr_t>(to_shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0)
    machine.fail("an asynchronous copy that is not aligned to 16 bytes", where);
  const emulation::PendingCopy copy{.to = static_cast<std::byte*>(to_shared),
                                    .from = static_cast<const std::byte*>(from),
                                    .bytes = bytes,
                                    .group = self.copy_group};
  if (machine.random() % 2 == 0)
    copy_now(copy);
  else
    self.copies.push_back(copy);
}
inline void commit_copies() { ++Machine::instance().self().copy_group; }
template <int kPending>
void wait_for_copies() {
  emulation::Thread& self = Machine::instance().self();
  while (!self.copies.empty() && self.copies.front().group + kPending < self.copy_group) {
    copy_now(self.copies.front());
    self.copies.pop_front();
  }
}

// A lane's row is read when that lane arrives: arriving at a warp operation orders no memory.
struct MatrixLoad {
  std::array<uint16_t, 8> row;
  uint32_t* out;
};

inline void load_8x8(uint32_t (&out)[4], const void* row, bool transposed, const Where& where) {
  Machine& machine = Machine::instance();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    machine.fail("a matrix row that is not aligned to 16 bytes", where);
  MatrixLoad data{.row = {}, .out = out};
  std::memcpy(data.row.data(), row, 16);
  machine.warp_operation(
      "ldmatrix", kFullWarp, data,
      [&](std::array<MatrixLoad*, 32>& lanes) {
        const auto element = [&](int matrix, int row, int column) {
          return lanes[matrix * 8 + row]->row[column];
        };
        for (int lane = 0; lane < 32; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix) {
            const int g = lane / 4, t = lane % 4;
            const uint16_t low = transposed ? element(matrix, 2 * t, g) : element(matrix, g, 2 * t);
            const uint16_t high =
                transposed ? element(matrix, 2 * t + 1, g) : element(matrix, g, 2 * t + 1);
            lanes[lane]->out[matrix] = low | static_cast<uint32_t>(high) << 16;
          }
      },
      where);
}
inline void load_matrices(uint32_t (&out)[4], const void* row, Where where = Where::current()) {
  load_8x8(out, row, false, where);
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row,
                                     Where where = Where::current()) {
  load_8x8(out, row, true, where);
}

struct MultiplyAdd {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  Where where = Where::current()) {
  MultiplyAdd data{c, a, {b0, b1}};
  Machine::instance().warp_operation(
      "mma", kFullWarp, data,
      [](std::array<MultiplyAdd*, 32>& lanes) {
        const auto half = [](uint32_t word, int which) {
          return as_float(T{static_cast<uint16_t>(word >> (16 * which))});
        };
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 2; ++j)
              a[g + i % 2 * 8][2 * t + i / 2 * 8 + j] = half(lanes[lane]->a[i], j);
          for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) b[2 * t + i * 8 + j][g] = half(lanes[lane]->b[i], j);
        }
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < 4; ++i) {
            float sum = lanes[lane]->c[i];
            for (int k = 0; k < 16; ++k) sum += a[g + i / 2 * 8][k] * b[k][2 * t + i % 2];
            lanes[lane]->c[i] = sum;
          }
        }
      },
      where);
}

inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }

// The multicast range that holds an address, and the address's offset in it.
struct MulticastPlace {
  emulation::Multicast range;
  size_t offset;
};
inline MulticastPlace find_multicast(const void* address, const Where& where) {
  Machine& machine = Machine::instance();
  const auto* byte = static_cast<const std::byte*>(address);
  std::optional<emulation::Multicast> range = machine.find_multicast(byte, sizeof(Vec16));
  if (!range) machine.fail("a multicast access outside every multicast range", where);
  const auto offset = static_cast<size_t>(byte - range->base);
  return {std::move(*range), offset};
}

template <typename T>
Vec16 multicast_load_reduce(const void* from, Where where = Where::current()) {
  const MulticastPlace place = find_multicast(from, where);
  float total[kPerVec16<T>] = {};
  for (const std::byte* heap : place.range.heaps) {
    float values[kPerVec16<T>];
    unpack<T>(*reinterpret_cast<const Vec16*>(heap + place.offset), values);
    for (int i = 0; i < kPerVec16<T>; ++i) total[i] += values[i];
  }
  return pack<T>(total);
}

inline void multicast_store(void* to, const Vec16& v, Where where = Where::current()) {
  const MulticastPlace place = find_multicast(to, where);
  for (std::byte* heap : place.range.heaps) store_remote(heap + place.offset, v);
}

}  // namespace nanoweave::ptx
