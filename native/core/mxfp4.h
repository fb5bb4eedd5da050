// Conversion from MXFP4 of the OCP specification of microscaling formats, as gpt-oss stores
// experts: 4-bit floats e2m1, two to a byte, the first in the low half; kMxfp4Block neighbours
// share a power of two, an 8-bit exponent e8m0.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace nanoweave {

inline constexpr int64_t kMxfp4Block = 32;

// Bit 3 is the sign.
inline constexpr std::array<float, 16> kE2m1 = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                                -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

// 2^(bits − 127); NaN with all bits set.
inline float e8m0_to_float(uint8_t bits) {
  if (bits == 0) return 0x1p-127f;
  return std::bit_cast<float>(bits == 255 ? 0x7fc00000u : uint32_t{bits} << 23);
}

}  // namespace nanoweave
