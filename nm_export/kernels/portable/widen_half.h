// float16 to float32 without instructions for it.
#pragma once

#include <cstdint>

#include "float_bits.h"

namespace nm_export {
namespace {

inline float widen_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude_bits = half & 0x7fffu;
  if (magnitude_bits >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude_bits & 0x3ffu) << 13);
  if (magnitude_bits >= 0x0400u) return float_of(sign | ((magnitude_bits << 13) + (112u << 23)));
  // Subnormal: the mantissa in units of 2^-24, which float32 holds exactly.
  const float value = static_cast<float>(magnitude_bits) * 0x1p-24f;
  return float_of(sign | static_cast<uint32_t>(bits_of(value)));
}

}  // namespace
}  // namespace nm_export
