// Scores as integers of the same order. For the files of an instruction set: everything has internal linkage.
#pragma once

#include "float_bits.h"

namespace nm_export {
namespace {

// Scores are not negative, so their bits order like themselves; every NaN becomes one key just above +inf.
constexpr int32_t kMagnitudeBits = 0x7fffffff;
constexpr int32_t kNanKey = 0x7f800001;

inline float magnitude(float z) { return float_of(static_cast<uint32_t>(bits_of(z) & kMagnitudeBits)); }

inline int32_t key_of(float z, float score) {
  const int32_t key = bits_of(magnitude(z) * score) & kMagnitudeBits;
  return key < kNanKey ? key : kNanKey;
}

}  // namespace
}  // namespace nm_export
