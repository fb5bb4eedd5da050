// Tensor: a row-major matrix in a rank's memory, as an op sees it at run time. Ops are written
// over [rows, cols]; a part of a nano-batched buffer is the same tensor with fewer rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace nanoweave {

struct Tensor {
  std::byte* data = nullptr;  // null: optional operand absent, or no rows
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;  // elements of a row; rows are contiguous

  int64_t row_bytes() const { return cols * dtype_bytes(dtype); }
  std::byte* row(int64_t index) const { return data + index * row_bytes(); }
  explicit operator bool() const { return data != nullptr; }
};

// Converts `count` elements to or from float32. Vectorised where the machine can.
void load_floats(DType dtype, const std::byte* source, int64_t count, float* out);
void store_floats(DType dtype, const float* source, int64_t count, std::byte* out);

}  // namespace nanoweave
