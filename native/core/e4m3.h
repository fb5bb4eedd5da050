// Conversion from 8-bit floats, as checkpoints store weights.
#pragma once

#include <bit>
#include <cstdint>

namespace nanoweave {

// An 8-bit float of the OCP format e4m3: 4 exponent bits (bias 7), 3 of fraction, no infinities,
// NaN with all of both set.
inline float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = uint32_t{bits & 0x80u} << 24;
  const uint32_t exponent = (bits >> 3) & 0xfu;
  const uint32_t fraction = bits & 7u;
  if (exponent == 15 && fraction == 7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-9f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (fraction << 20));
}

}  // namespace nanoweave
