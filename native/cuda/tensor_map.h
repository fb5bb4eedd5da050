// Tensor maps: what the copy engine of sm_90 (TMA) needs to know of a tensor in device memory. Made
// on the host, passed to kernels inside a __grid_constant__ argument.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace nanoweave {

// The driver's CUtensorMap; the emulation has fields of its own in it.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

// A tensor of 16-bit elements, innermost dimension first, and the box that one copy brings. Boxes
// lie in shared memory with rows of up to 128 bytes, swizzled by 128 bytes; what a box has outside
// of the tensor arrives as zeros. Unused dimensions are 1.
struct TensorMapShape {
  DType dtype = DType::kBf16;
  const void* base = nullptr;             // 16-byte aligned
  int rank = 2;                           // 2 or 3
  std::array<int64_t, 3> sizes{1, 1, 1};  // elements
  std::array<int64_t, 2> strides{};       // bytes, of dimensions 1 and 2; multiples of 16
  std::array<int32_t, 3> box{1, 1, 1};    // elements, up to 256; 128 bytes in dimension 0
};

// Throws EngineError (internal) when the driver has no tensor maps or refuses this one.
TensorMap make_tensor_map(const TensorMapShape& shape);

}  // namespace nanoweave
