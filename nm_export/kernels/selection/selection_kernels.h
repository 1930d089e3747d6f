// The inner loops over one token, implemented once for every instruction set.
//
// The files of an instruction set are compiled with its own machine flags, so they and this header use no
// inline function of the C++ library: the linker could otherwise pick their copy of it for a processor that cannot run
// it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element_types.h"
#include "selection/selection_network.h"

namespace nm_export {

// For groups of at most kMaxGroupSize channels.
struct Pattern {
  int n;
  int m;
  SelectionNetwork network;
};

// z = x - shift, with the shift a vector of `channels` numbers, or one number when `vector` is null.
struct Shift {
  const float* vector;
  float scalar;
};

// The widest vector of any instruction set.
constexpr size_t kGatherSlack = 16;

struct SelectionKernels {
  // values[j] = z[j] where channel j is among the n highest scores |z| * score of its m neighbours, else +0.
  // `channels` is a multiple of m, and n < m. `values` overlaps no input.
  void (*prune)(const float* x, const float* score, Shift shift, size_t channels, const Pattern& pattern,
                float* values);
  // mask[j] = 1 where channel j is among the n highest scores of its m neighbours, else 0. n < m; scores are not
  // negative.
  void (*keep_mask)(const float* scores, size_t channels, const Pattern& pattern, uint8_t* mask);
  // z[j] = x[j] - shift; z may be x.
  void (*subtract)(const float* x, Shift shift, size_t channels, float* z);
  // values[j] *= factor.
  void (*scale)(float* values, float factor, size_t channels);
  // In float64: the sum of v, and the sum of (v - mean)^2.
  double (*sum)(const float* v, size_t channels);
  double (*sum_of_squares)(const float* v, double mean, size_t channels);
  // For the median: whether v holds a NaN, and how many numbers are less than `limit`.
  bool (*has_nan)(const float* v, size_t channels);
  size_t (*count_below)(const float* v, float limit, size_t channels);
  // found = the numbers of v that are at least `first` and not at least `limit`, in their order. What lies behind them
  // is written to as well, up to kGatherSlack numbers.
  void (*gather_between)(const float* v, float first, float limit, size_t channels, float* found);
  // For groups larger than a Pattern: how many keys are not less than `limit`.
  size_t (*count_at_least)(const int32_t* keys, int32_t limit, size_t channels);
  // float16 and bfloat16 from and to float32, rounded to the nearest, ties to even.
  void (*widen_float16)(const Float16* source, size_t channels, float* target);
  void (*narrow_float16)(const float* source, size_t channels, Float16* target);
  void (*widen_bfloat16)(const BFloat16* source, size_t channels, float* target);
  void (*narrow_bfloat16)(const float* source, size_t channels, BFloat16* target);
};

}  // namespace nm_export
