#include "median.h"

#include <cstdint>
#include <cstring>
#include <limits>

namespace nm_export {
namespace {

// Unsigned keys in the order of the numbers: negative ones reversed, positive ones above them.
uint32_t ordered_key(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

float from_ordered_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr int kDigits = 3;
constexpr int kBitsOf[kDigits] = {11, 11, 10};  // from the top
constexpr size_t kBins = 2048;

}  // namespace

float median(const float* v, size_t channels) {
  bool has_nan = false;
  for (size_t i = 0; i < channels; ++i) has_nan |= v[i] != v[i];
  if (has_nan) return std::numeric_limits<float>::quiet_NaN();

  // Radix selection: each pass counts one digit of the keys that share the digits found so far.
  size_t rank = (channels - 1) / 2;
  uint32_t found = 0;
  uint32_t found_mask = 0;
  int shift = 32;
  for (const int bits : kBitsOf) {
    shift -= bits;
    const uint32_t digit_mask = (1u << bits) - 1;
    uint32_t counts[kBins] = {};
    for (size_t i = 0; i < channels; ++i) {
      const uint32_t key = ordered_key(v[i]);
      if ((key & found_mask) == found) ++counts[key >> shift & digit_mask];
    }
    uint32_t digit = 0;
    while (rank >= counts[digit]) rank -= counts[digit++];
    found |= digit << shift;
    found_mask |= digit_mask << shift;
  }
  return from_ordered_key(found);
}

}  // namespace nm_export
