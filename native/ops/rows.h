// How element-wise ops spread rows over a rank's threads: in place when there is little to do,
// else in chunks of whole rows. A row is always one thread's, so its bits do not depend on this.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/op.h"

namespace nanoweave {

// Below this many elements waking the other threads costs more than the work.
inline constexpr int64_t kMinParallelElements = 32768;

// Calls body(begin, end, thread) over [0, rows); `cols` is the work of a row in elements.
template <typename Body>
void for_row_chunks(const HostRank& rank, int64_t rows, int64_t cols, const Body& body) {
  if (rows <= 0) return;
  const int64_t threads = rank.pool->num_threads();
  if (threads == 1 || rows == 1 || rows * cols < kMinParallelElements) {
    body(int64_t{0}, rows, 0);
    return;
  }
  // Four chunks per thread even out threads that come late; a chunk holds 8192 elements or more.
  const int64_t smallest = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, cols));
  const int64_t chunk = std::max(smallest, (rows + threads * 4 - 1) / (threads * 4));
  const int64_t chunks = (rows + chunk - 1) / chunk;
  rank.pool->parallel_for(chunks, [&](int64_t index, int thread) {
    body(index * chunk, std::min(rows, (index + 1) * chunk), thread);
  });
}

// `count` floats of scratch for every thread of the rank; valid until the next Scratch::get().
class ThreadFloats {
 public:
  ThreadFloats(const HostRank& rank, int64_t count)
      : stride_((count + 15) / 16 * 16),
        data_(reinterpret_cast<float*>(
            rank.scratch->get(stride_ * rank.pool->num_threads() * int64_t{sizeof(float)}))) {}
  float* of(int thread) const { return data_ + thread * stride_; }

 private:
  int64_t stride_;  // floats; a multiple of a cache line
  float* data_;
};

inline const float* floats(const Tensor& tensor) {
  return reinterpret_cast<const float*>(tensor.data);
}

}  // namespace nanoweave
