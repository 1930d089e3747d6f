#include "selection/median.h"

#include <algorithm>
#include <cmath>
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
constexpr size_t kFew = 32;

// Where the number of rank `rank` is: in [low, high) of the keys, which hold `inside` numbers, `below` are lower.
struct Bracket {
  uint32_t low, high;
  size_t below, inside;

  void split(uint32_t middle, size_t below_middle, size_t rank) {
    if (below_middle <= rank) {
      inside -= below_middle - below;
      below = below_middle;
      low = middle;
    } else {
      inside = below_middle - below;
      high = middle;
    }
  }

  // Halves the numbers' range of exponents: quick where they are of different orders of magnitude.
  uint32_t bisection() const { return low + (high - low) / 2; }

  // Cuts most of the numbers off, if they are spread evenly: a little beside the rank, on the side that has more.
  uint32_t interpolation(size_t rank) const {
    const float first = from_ordered_key(low);
    const float last = from_ordered_key(high);
    if (!std::isfinite(first) || !std::isfinite(last)) return bisection();
    const auto all = static_cast<float>(inside);
    const auto wanted = static_cast<float>(rank - below);
    const float margin = std::max(static_cast<float>(kFew) / 4, all / 32);
    const float share = (wanted < all / 2 ? wanted + margin : std::max(wanted - margin, 0.5f)) / all;
    const uint32_t middle = ordered_key(first + (last - first) * share);
    return std::min(std::max(middle, low + 1), high - 1);
  }
};

}  // namespace

float median(const SelectionKernels& kernels, const float* v, size_t channels) {
  if (kernels.has_nan(v, channels)) return std::numeric_limits<float>::quiet_NaN();

  const size_t rank = (channels - 1) / 2;
  Bracket bracket = {ordered_key(-std::numeric_limits<float>::infinity()),
                     ordered_key(std::numeric_limits<float>::infinity()) + 1, 0, channels};
  for (bool bisects = true; bracket.inside > kFew && bracket.high - bracket.low > 1; bisects = !bisects) {
    const uint32_t middle = bisects ? bracket.bisection() : bracket.interpolation(rank);
    bracket.split(middle, kernels.count_below(v, from_ordered_key(middle), channels), rank);
  }
  const float smallest = from_ordered_key(bracket.low);
  if (bracket.inside > kFew) return smallest;  // all of them are this one number

  // Above +inf the limit is a NaN, which no number is at least.
  float candidates[kFew + kGatherSlack];
  kernels.gather_between(v, smallest, from_ordered_key(bracket.high), channels, candidates);
  float* const found = candidates + (rank - bracket.below);
  std::nth_element(candidates, found, candidates + bracket.inside);
  return *found;
}

}  // namespace nm_export
