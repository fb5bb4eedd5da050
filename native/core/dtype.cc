#include "core/dtype.h"

#include "core/error.h"

namespace nanoweave {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBf16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI32:
      return "i32";
    case DType::kU8:
      return "u8";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI32, DType::kU8})
    if (name == dtype_name(dtype)) return dtype;
  fail(ErrorCode::kProgram, "unknown dtype '%.32s'; known: f32, bf16, f16, i32, u8",
       std::string(name).c_str());
}

}  // namespace nanoweave
