// Numbers as their bits and back. For the files of an instruction set: everything has internal linkage.
#pragma once

#include <string.h>

#include <cstdint>

#include "element_types.h"

namespace nm_export {
namespace {

inline int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widened(BFloat16 number) { return float_of(static_cast<uint32_t>(number.bits) << 16); }

}  // namespace
}  // namespace nm_export
