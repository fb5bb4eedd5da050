// Tensor maps of the emulation: the shape itself, checked by the rules of cuTensorMapEncodeTiled.
#include "cuda/tensor_map.h"

#include <cstring>

#include "core/error.h"

namespace nanoweave {

TensorMap make_tensor_map(const TensorMapShape& shape) {
  static_assert(sizeof(TensorMapShape) <= sizeof(TensorMap));
  CHECK(shape.rank == 2 || shape.rank == 3);
  CHECK(dtype_bytes(shape.dtype) == 2);
  CHECK(reinterpret_cast<uintptr_t>(shape.base) % 16 == 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(shape.sizes[i] >= 1 && shape.sizes[i] <= int64_t{1} << 32);
    CHECK(shape.box[i] >= 1 && shape.box[i] <= 256);
    CHECK(i < shape.rank || (shape.sizes[i] == 1 && shape.box[i] == 1));
  }
  for (int i = 0; i + 1 < shape.rank; ++i)
    CHECK(shape.strides[i] >= 16 && shape.strides[i] % 16 == 0 &&
          shape.strides[i] < int64_t{1} << 40);
  // Swizzled by 128 bytes.
  CHECK(shape.box[0] * 2 == 128);
  TensorMap map{};
  std::memcpy(&map, &shape, sizeof shape);
  return map;
}

}  // namespace nanoweave
