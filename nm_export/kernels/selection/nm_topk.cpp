#include "selection/nm_topk.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "selection/large_group.h"
#include "selection/median.h"
#include "strict_floats.h"

namespace nm_export {
namespace {

void widen(const SelectionKernels& kernels, const Float16* source, size_t channels, float* target) {
  kernels.widen_float16(source, channels, target);
}
void widen(const SelectionKernels& kernels, const BFloat16* source, size_t channels, float* target) {
  kernels.widen_bfloat16(source, channels, target);
}
void narrow(const SelectionKernels& kernels, const float* source, size_t channels, Float16* target) {
  kernels.narrow_float16(source, channels, target);
}
void narrow(const SelectionKernels& kernels, const float* source, size_t channels, BFloat16* target) {
  kernels.narrow_bfloat16(source, channels, target);
}

// From strided groups to neighbours: a matrix of [m, channels / m] is transposed, and m neighbours of the result are a
// group. With channels / m for m, back again.
void transpose(const float* source, size_t channels, size_t m, float* target) {
  const size_t groups = channels / m;
  for (size_t j = 0; j < m; ++j) {
    for (size_t g = 0; g < groups; ++g) target[g * m + j] = source[j * groups + g];
  }
}

template <class T>
T* grow(std::vector<T>& buffer, size_t channels) {
  if (buffer.size() < channels) buffer.resize(channels);
  return buffer.data();
}

}  // namespace

NMTopK::NMTopK(const NMTopKParameters& parameters, const SelectionKernels& kernels)
    : parameters_(parameters),
      has_large_groups_(parameters.m > kMaxGroupSize),
      pattern_{parameters.n, parameters.m,
               has_large_groups_ ? SelectionNetwork{} : make_selection_network(parameters.n, parameters.m)},
      kernels_(kernels) {}

void NMTopK::prune(const float* x, const float* score, Shift shift, size_t channels, Workspace& workspace,
                   float* values) const {
  if (!has_large_groups_) {
    kernels_.prune(x, score, shift, channels, pattern_, values);
    return;
  }
  const auto m = static_cast<size_t>(pattern_.m);
  int32_t* keys = grow(workspace.keys, m);
  kernels_.subtract(x, shift, channels, values);
  for (size_t start = 0; start < channels; start += m) {
    float* z = values + start;
    score_keys(z, score + start, m, keys);
    zero_pruned(find_threshold(kernels_, keys, static_cast<size_t>(pattern_.n), m), keys, m, z);
  }
}

void NMTopK::keep_mask_of_token(const float* scores, size_t channels, Workspace& workspace, uint8_t* mask) const {
  if (pattern_.n == pattern_.m) {
    std::fill_n(mask, channels, uint8_t{1});
    return;
  }
  if (!has_large_groups_) {
    kernels_.keep_mask(scores, channels, pattern_, mask);
    return;
  }
  const auto m = static_cast<size_t>(pattern_.m);
  int32_t* keys = grow(workspace.keys, m);
  for (size_t start = 0; start < channels; start += m) {
    score_keys(scores + start, nullptr, m, keys);
    mask_kept(find_threshold(kernels_, keys, static_cast<size_t>(pattern_.n), m), keys, m, mask + start);
  }
}

float NMTopK::variance_ratio(const float* z, const float* p, size_t channels) const {
  const auto count = static_cast<double>(channels);
  const auto variance = [&](const float* v) {
    return kernels_.sum_of_squares(v, kernels_.sum(v, channels) / count, channels) / count;
  };
  const double dense = variance(z);
  const double sparse = variance(p);
  if (!std::isfinite(dense) || !std::isfinite(sparse) || dense == 0 || sparse == 0) return 1.0f;
  return static_cast<float>(std::sqrt(dense / sparse));
}

template <class T>
float NMTopK::run_token(const T* x, const float* score, Shift shift, size_t channels, bool pruned, Workspace& workspace,
                        T* values) const {
  constexpr bool kIsFloat = std::is_same_v<T, float>;

  const float* xf;
  float* p;
  if constexpr (kIsFloat) {
    xf = x;
    p = values;
  } else {
    float* widened = grow(workspace.shifted, channels);
    widen(kernels_, x, channels, widened);
    xf = widened;
    p = grow(workspace.pruned, channels);
  }

  const auto m = static_cast<size_t>(pattern_.m);
  float* const in_order = p;
  if (parameters_.strided) {
    float* grouped = grow(workspace.grouped, channels);
    transpose(xf, channels, m, grouped);
    xf = grouped;
    p = grow(workspace.grouped_values, channels);
  }

  float e = 0.0f;
  if (parameters_.shift_mode != ShiftMode::kStatic) {
    e = parameters_.shift_mode == ShiftMode::kDynamicMean
            ? static_cast<float>(kernels_.sum(xf, channels) / static_cast<double>(channels))
            : median(kernels_, xf, channels);
    shift = {nullptr, e};
  }

  if (!pruned || pattern_.n == pattern_.m) {
    kernels_.subtract(xf, shift, channels, p);
  } else if (parameters_.variance_correction) {
    float* z = grow(workspace.shifted, channels);
    kernels_.subtract(xf, shift, channels, z);
    prune(z, score, Shift{nullptr, 0.0f}, channels, workspace, p);
    const float nu = variance_ratio(z, p, channels);
    if (nu != 1.0f) kernels_.scale(p, nu, channels);
  } else {
    prune(xf, score, shift, channels, workspace, p);
  }
  if (parameters_.strided) {
    transpose(p, channels, channels / m, in_order);
    p = in_order;
  }
  if constexpr (!kIsFloat) narrow(kernels_, p, channels, values);
  return e;
}

template <class T>
void NMTopK::run(const T* x, const float* score, Shift shift, size_t tokens, size_t channels, bool pruned,
                 Workspace& workspace, T* values, float* token_shift) const {
  const StrictFloats strict;
  if (parameters_.strided) {
    const auto grouped = [&](const float* vector, std::vector<float>& buffer) {
      float* target = grow(buffer, channels);
      transpose(vector, channels, static_cast<size_t>(pattern_.m), target);
      return target;
    };
    score = grouped(score, workspace.grouped_score);
    if (shift.vector != nullptr) shift.vector = grouped(shift.vector, workspace.grouped_shift);
  }
  for (size_t t = 0; t < tokens; ++t) {
    const float e = run_token(x + t * channels, score, shift, channels, pruned, workspace, values + t * channels);
    if (token_shift != nullptr) token_shift[t] = e;
  }
}

void NMTopK::keep_mask(const float* scores, size_t tokens, size_t channels, Workspace& workspace, uint8_t* mask) const {
  const StrictFloats strict;
  for (size_t t = 0; t < tokens; ++t) {
    keep_mask_of_token(scores + t * channels, channels, workspace, mask + t * channels);
  }
}

template void NMTopK::run(const float*, const float*, Shift, size_t, size_t, bool, Workspace&, float*, float*) const;
template void NMTopK::run(const Float16*, const float*, Shift, size_t, size_t, bool, Workspace&, Float16*,
                          float*) const;
template void NMTopK::run(const BFloat16*, const float*, Shift, size_t, size_t, bool, Workspace&, BFloat16*,
                          float*) const;

}  // namespace nm_export
