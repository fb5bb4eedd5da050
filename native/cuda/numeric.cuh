// Conversions between storage types and float32 on the device, 16 bytes at a time. Rounding is to
// nearest, ties to even, as on the host.
#pragma once

#include "cuda/simt.cuh"

namespace nanoweave {

template <typename To, typename From>
__device__ __forceinline__ To bit_cast_to(From value) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, value);
}

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(bf16 value) {
  return bit_cast_to<float>(static_cast<uint32_t>(value.bits) << 16);
}

#if defined(NANOWEAVE_EMULATION)

inline float as_float(f16 value) { return to_float(value); }
template <typename T>
inline T round_to(float value);
template <>
inline float round_to<float>(float value) {
  return value;
}
template <>
inline bf16 round_to<bf16>(float value) {
  return to_bf16(value);
}
template <>
inline f16 round_to<f16>(float value) {
  return to_f16(value);
}
// Two values in one register, `low` in the low half.
template <typename T>
inline uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(round_to<T>(low).bits) |
         static_cast<uint32_t>(round_to<T>(high).bits) << 16;
}

#else

__device__ __forceinline__ float as_float(f16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
template <typename T>
__device__ __forceinline__ T round_to(float value);
template <>
__device__ __forceinline__ float round_to<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 round_to<bf16>(float value) {
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
template <>
__device__ __forceinline__ f16 round_to<f16>(float value) {
  f16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
template <>
__device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

#endif

// 16 bytes in registers.
struct alignas(16) Vec16 {
  uint32_t words[4];
};

template <typename T>
inline constexpr int kPerVec16 = 16 / static_cast<int>(sizeof(T));

template <typename T>
__device__ __forceinline__ void unpack(const Vec16& vec, float (&out)[kPerVec16<T>]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = bit_cast_to<float>(vec.words[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = as_float(T{static_cast<uint16_t>(vec.words[i])});
      out[2 * i + 1] = as_float(T{static_cast<uint16_t>(vec.words[i] >> 16)});
    }
  }
}

template <typename T>
__device__ __forceinline__ Vec16 pack(const float (&values)[kPerVec16<T>]) {
  Vec16 vec;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) vec.words[i] = bit_cast_to<uint32_t>(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) vec.words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
  }
  return vec;
}

// kWidth consecutive elements as floats in one access of up to 16 bytes, to which the address is
// aligned.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Elements {
  static_assert(sizeof(T) * kWidth <= 16);
  T values[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ void load_vector(const T* from, float (&out)[kWidth]) {
  if constexpr (sizeof(T) * kWidth == 16) {
    unpack<T>(*reinterpret_cast<const Vec16*>(from), out);
  } else {
    const auto elements = *reinterpret_cast<const Elements<T, kWidth>*>(from);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = as_float(elements.values[i]);
  }
}

template <typename T, int kWidth>
__device__ __forceinline__ void store_vector(T* to, const float (&values)[kWidth]) {
  if constexpr (sizeof(T) * kWidth == 16) {
    *reinterpret_cast<Vec16*>(to) = pack<T>(values);
  } else {
    Elements<T, kWidth> elements;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) elements.values[i] = round_to<T>(values[i]);
    *reinterpret_cast<Elements<T, kWidth>*>(to) = elements;
  }
}

// One element of a dtype that is known at run time only: for paths that need not be fast.
__device__ __forceinline__ float load_element(DType dtype, const void* from, int64_t index) {
  if (dtype == DType::kBf16) return as_float(static_cast<const bf16*>(from)[index]);
  if (dtype == DType::kF16) return as_float(static_cast<const f16*>(from)[index]);
  return static_cast<const float*>(from)[index];
}
__device__ __forceinline__ void store_element(DType dtype, void* to, int64_t index, float value) {
  if (dtype == DType::kBf16)
    static_cast<bf16*>(to)[index] = round_to<bf16>(value);
  else if (dtype == DType::kF16)
    static_cast<f16*>(to)[index] = round_to<f16>(value);
  else
    static_cast<float*>(to)[index] = value;
}

}  // namespace nanoweave
