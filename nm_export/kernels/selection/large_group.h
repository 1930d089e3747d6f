// Selection from groups of any size, which no network covers: the top n of all channels of a token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "selection/selection_kernels.h"

namespace nm_export {

// keys[j] orders channel j by |z[j]| * score[j] as docs/semantics.md ranks scores; score null means ones.
void score_keys(const float* z, const float* score, size_t channels, int32_t* keys);

// The n highest keys of a group are those above `limit`, and those equal to it before channel `end_of_ties`.
struct Threshold {
  int32_t limit;
  size_t end_of_ties;
};

// The threshold of a group of m keys. 1 <= n <= m. Allocates nothing.
Threshold find_threshold(const SelectionKernels& kernels, const int32_t* keys, size_t n, size_t m);

// values[j] = +0 where the threshold prunes channel j of the m of its group.
void zero_pruned(const Threshold& threshold, const int32_t* keys, size_t m, float* values);

// mask[j] = 1 where the threshold keeps channel j, else 0.
void mask_kept(const Threshold& threshold, const int32_t* keys, size_t m, uint8_t* mask);

}  // namespace nm_export
