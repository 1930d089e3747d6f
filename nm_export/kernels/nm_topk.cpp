#include "nm_topk.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "median.h"
#include "strict_floats.h"

namespace nm_export {
namespace {

void widen(const RowKernels& kernels, const Float16* source, size_t channels, float* target) {
  kernels.widen_float16(&source->bits, channels, target);
}
void widen(const RowKernels& kernels, const BFloat16* source, size_t channels, float* target) {
  kernels.widen_bfloat16(&source->bits, channels, target);
}
void narrow(const RowKernels& kernels, const float* source, size_t channels, Float16* target) {
  kernels.narrow_float16(source, channels, &target->bits);
}
void narrow(const RowKernels& kernels, const float* source, size_t channels, BFloat16* target) {
  kernels.narrow_bfloat16(source, channels, &target->bits);
}

float* grow(std::vector<float>& buffer, size_t channels) {
  if (buffer.size() < channels) buffer.resize(channels);
  return buffer.data();
}

}  // namespace

NMTopK::NMTopK(const NMTopKParameters& parameters, const RowKernels& kernels)
    : parameters_(parameters),
      pattern_{parameters.n, parameters.m, make_selection_network(parameters.n, parameters.m)},
      kernels_(kernels) {}

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
    kernels_.prune(z, score, Shift{nullptr, 0.0f}, channels, pattern_, p);
    const float nu = variance_ratio(z, p, channels);
    if (nu != 1.0f) kernels_.scale(p, nu, channels);
  } else {
    kernels_.prune(xf, score, shift, channels, pattern_, p);
  }
  if constexpr (!kIsFloat) narrow(kernels_, p, channels, values);
  return e;
}

template <class T>
void NMTopK::run(const T* x, const float* score, Shift shift, size_t tokens, size_t channels, bool pruned,
                 Workspace& workspace, T* values, float* token_shift) const {
  const StrictFloats strict;
  for (size_t t = 0; t < tokens; ++t) {
    const float e = run_token(x + t * channels, score, shift, channels, pruned, workspace, values + t * channels);
    if (token_shift != nullptr) token_shift[t] = e;
  }
}

void NMTopK::keep_mask(const float* scores, size_t tokens, size_t channels, uint8_t* mask) const {
  const StrictFloats strict;
  for (size_t t = 0; t < tokens; ++t) {
    const size_t first = t * channels;
    if (pattern_.n == pattern_.m) {
      std::fill_n(mask + first, channels, uint8_t{1});
    } else {
      kernels_.keep_mask(scores + first, channels, pattern_, mask + first);
    }
  }
}

template void NMTopK::run(const float*, const float*, Shift, size_t, size_t, bool, Workspace&, float*, float*) const;
template void NMTopK::run(const Float16*, const float*, Shift, size_t, size_t, bool, Workspace&, Float16*,
                          float*) const;
template void NMTopK::run(const BFloat16*, const float*, Shift, size_t, size_t, bool, Workspace&, BFloat16*,
                          float*) const;

}  // namespace nm_export
