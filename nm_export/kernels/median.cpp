#include "median.h"

#include <algorithm>
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

// So few candidates are sorted out by themselves.
constexpr size_t kFew = 128;

}  // namespace

float median(const RowKernels& kernels, const float* v, size_t channels) {
  if (kernels.has_nan(v, channels)) return std::numeric_limits<float>::quiet_NaN();

  // Bisection over the keys: the median lies in [low, high), where the numbers of rank [below, below + inside) are.
  const size_t rank = (channels - 1) / 2;
  uint32_t low = ordered_key(-std::numeric_limits<float>::infinity());
  uint32_t high = ordered_key(std::numeric_limits<float>::infinity()) + 1;
  size_t below = 0;
  size_t inside = channels;
  while (inside > kFew && high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const size_t below_middle = kernels.count_below(v, from_ordered_key(middle), channels);
    if (below_middle <= rank) {
      inside -= below_middle - below;
      below = below_middle;
      low = middle;
    } else {
      inside = below_middle - below;
      high = middle;
    }
  }
  const float smallest = from_ordered_key(low);
  if (inside > kFew) return smallest;  // all of them are this one number

  // Above +inf this is a NaN, which no number is at least.
  const float limit = from_ordered_key(high);
  float candidates[kFew + 1] = {};  // one more, which the loop writes to after all were found
  size_t count = 0;
  for (size_t i = 0; i < channels; ++i) {
    candidates[count] = v[i];
    // Not &&: a branch would be mispredicted for every second number.
    count += static_cast<size_t>(v[i] >= smallest) & static_cast<size_t>(!(v[i] >= limit));
  }
  float* const found = candidates + (rank - below);
  std::nth_element(candidates, found, candidates + count);
  return *found;
}

}  // namespace nm_export
