#include "selection/large_group.h"

#include "selection/score_key.h"

namespace nm_export {
namespace {

// Loops without a branch on data, which would be mispredicted half of the time.
void zero_below(const int32_t* keys, int32_t limit, size_t count, float* values) {
  for (size_t j = 0; j < count; ++j) {
    const uint32_t all_if_kept = 0u - static_cast<uint32_t>(keys[j] >= limit);
    values[j] = float_of(static_cast<uint32_t>(bits_of(values[j])) & all_if_kept);
  }
}

void mask_at_least(const int32_t* keys, int32_t limit, size_t count, uint8_t* mask) {
  for (size_t j = 0; j < count; ++j) mask[j] = static_cast<uint8_t>(keys[j] >= limit);
}

}  // namespace

void score_keys(const float* z, const float* score, size_t channels, int32_t* keys) {
  if (score == nullptr) {
    for (size_t i = 0; i < channels; ++i) keys[i] = key_of(z[i], 1.0f);
  } else {
    for (size_t i = 0; i < channels; ++i) keys[i] = key_of(z[i], score[i]);
  }
}

Threshold find_threshold(const SelectionKernels& kernels, const int32_t* keys, size_t n, size_t m) {
  // Bisection: the n-th highest key lies in [low, high). Keys are less than 2^31, so the sum needs unsigned numbers.
  uint32_t low = 0;
  uint32_t high = static_cast<uint32_t>(kNanKey) + 1;
  size_t above = 0;  // keys that are at least `high`
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const size_t count = kernels.count_at_least(keys, static_cast<int32_t>(middle), m);
    if (count == n) return {static_cast<int32_t>(middle), m};
    if (count > n) {
      low = middle;
    } else {
      high = middle;
      above = count;
    }
  }

  const auto limit = static_cast<int32_t>(low);
  size_t end = 0;
  for (size_t ties = n - above; ties > 0; ++end) ties -= keys[end] == limit ? 1u : 0u;
  return {limit, end};
}

void zero_pruned(const Threshold& threshold, const int32_t* keys, size_t m, float* values) {
  const size_t end = threshold.end_of_ties;
  zero_below(keys, threshold.limit, end, values);
  zero_below(keys + end, threshold.limit + 1, m - end, values + end);
}

void mask_kept(const Threshold& threshold, const int32_t* keys, size_t m, uint8_t* mask) {
  const size_t end = threshold.end_of_ties;
  mask_at_least(keys, threshold.limit, end, mask);
  mask_at_least(keys + end, threshold.limit + 1, m - end, mask + end);
}

}  // namespace nm_export
