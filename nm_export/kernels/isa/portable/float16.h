// float16 to float32 and back without instructions for it.
#pragma once

#include <cstdint>

#include "float_bits.h"

namespace nm_export {
namespace {

inline float widened(Float16 number) {
  const uint32_t sign = (number.bits & 0x8000u) << 16;
  const uint32_t magnitude_bits = number.bits & 0x7fffu;
  if (magnitude_bits >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude_bits & 0x3ffu) << 13);
  if (magnitude_bits >= 0x0400u) return float_of(sign | ((magnitude_bits << 13) + (112u << 23)));
  // Subnormal: the mantissa in units of 2^-24, which float32 holds exactly.
  const float value = static_cast<float>(magnitude_bits) * 0x1p-24f;
  return float_of(sign | static_cast<uint32_t>(bits_of(value)));
}

// The float16 to nearest, ties to even; of a NaN the quiet one of its sign.
inline uint16_t float16_bits(float value) {
  const auto bits = static_cast<uint32_t>(bits_of(value));
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude_bits = bits & 0x7fffffffu;
  if (magnitude_bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  // 65520 is the first number that rounds beyond the largest float16.
  if (magnitude_bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude_bits < 0x38800000u) {
    // Below 2^-14: adding 0.5 makes float32 round the mantissa at 2^-24, the unit of float16's subnormals.
    const float shifted_up = float_of(magnitude_bits) + 0.5f;
    return static_cast<uint16_t>(sign | (static_cast<uint32_t>(bits_of(shifted_up)) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude_bits - (112u << 23) + 0xfffu + (magnitude_bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

}  // namespace
}  // namespace nm_export
