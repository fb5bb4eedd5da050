// Matmul kernels in portable C++: four-float vectors, which every 64-bit target has.
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "cpu/matmul_kernel.h"
#include "cpu/matmul_sweep.h"

namespace nanoweave {
namespace {

struct Portable {
  typedef float Vec __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  using Weight = Vec;
  static constexpr int kLanes = 4;
  static constexpr int kOperandBytes = 4;
  static constexpr int kMaxRows = 2;
  static constexpr int kReadAheadRows = 2;
  static constexpr int panels_for(int) { return 1; }

  static Vec zero() { return Vec{}; }
  static Vec load(const float* source) {
    Vec value;
    std::memcpy(&value, source, sizeof(value));
    return value;
  }
  static void store(float* out, Vec value) { std::memcpy(out, &value, sizeof(value)); }
  static Vec broadcast(const std::byte* x) {
    float value;
    std::memcpy(&value, x, sizeof(value));
    return Vec{value, value, value, value};
  }
  static Vec multiply_add(Vec weight, Vec value, Vec sum) { return weight * value + sum; }

  static void store_bf16(const float* values, std::byte* out) {
    bf16 rounded[kPanelWidth];
    for (int lane = 0; lane < kPanelWidth; ++lane) rounded[lane] = to_bf16(values[lane]);
    std::memcpy(out, rounded, sizeof(rounded));
  }
  static void store_f16(const float* values, std::byte* out) {
    f16 rounded[kPanelWidth];
    for (int lane = 0; lane < kPanelWidth; ++lane) rounded[lane] = to_f16(values[lane]);
    std::memcpy(out, rounded, sizeof(rounded));
  }
};

struct PortableF32 : Portable {
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int j) {
    return load(reinterpret_cast<const float*>(group) + j * kLanes);
  }
};

// A pair's first k sits in the low half of a 32-bit lane.
struct PortableBf16 : Portable {
  static constexpr int kGroupBytes = 64;
  static constexpr int kSteps = 2;
  static Vec weight(const std::byte* group, int step, int j) {
    Bits pairs;
    std::memcpy(&pairs, group + j * 16, sizeof(pairs));
    return std::bit_cast<Vec>(step == 0 ? pairs << 16 : pairs & 0xffff0000u);
  }
};

struct PortableF16 : Portable {
  static constexpr int kGroupBytes = 32;
  static constexpr int kSteps = 1;
  static Vec weight(const std::byte* group, int, int j) {
    f16 values[kLanes];
    std::memcpy(values, group + j * 8, sizeof(values));
    return Vec{to_float(values[0]), to_float(values[1]), to_float(values[2]), to_float(values[3])};
  }
};

constexpr MatmulKernel kF32 = make_kernel<PortableF32>("portable f32", DType::kF32);
constexpr MatmulKernel kBf16 = make_kernel<PortableBf16>("portable bf16", DType::kF32);
constexpr MatmulKernel kF16 = make_kernel<PortableF16>("portable f16", DType::kF32);

}  // namespace

const MatmulKernel* portable_kernel(DType w_dtype) {
  switch (w_dtype) {
    case DType::kF32:
      return &kF32;
    case DType::kBf16:
      return &kBf16;
    case DType::kF16:
      return &kF16;
    default:
      return nullptr;
  }
}

}  // namespace nanoweave
