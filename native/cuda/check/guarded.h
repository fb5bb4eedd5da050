// GuardedMemory: memory that ends at a page nobody may touch, so that an access past its end stops
// the check. Starts out as 0xff bytes: NaN, −1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace nanoweave::check {

class GuardedMemory {
 public:
  GuardedMemory() = default;
  // `alignment` is that of the first byte; up to alignment − 1 bytes before the guard page are not
  // guarded but watched: intact() is false once one has changed.
  explicit GuardedMemory(int64_t bytes, int64_t alignment = 64);
  ~GuardedMemory();
  GuardedMemory(GuardedMemory&& other) noexcept { swap(other); }
  GuardedMemory& operator=(GuardedMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool intact() const;
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(GuardedMemory& other) {
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  std::byte* mapping_ = nullptr;
  int64_t mapping_bytes_ = 0;  // guard page included
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// One region of several pieces, each followed by a guard page, at the same offsets in every region
// laid out alike: a rank's heap.
class GuardedHeap {
 public:
  // offsets[i]: where piece i of sizes[i] bytes begins, 64-byte aligned; filled in.
  static int64_t lay_out(const int64_t* sizes, int count, int64_t* offsets);

  GuardedHeap() = default;
  GuardedHeap(int64_t bytes, const int64_t* sizes, const int64_t* offsets, int count);
  ~GuardedHeap();
  GuardedHeap(GuardedHeap&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace nanoweave::check
