// float16 and bfloat16 from and to float32. Part of selection_kernels_impl.h.
#pragma once

#include "float_bits.h"
#include "selection/selection_kernels.h"

namespace nm_export {
namespace {

template <class V>
void widen_float16(const Float16* source, size_t channels, float* target) {
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) V::store(target + i, V::load(source + i));
  if (i == channels) return;
  Float16 last[V::kWidth] = {};
  float wide[V::kWidth];
  for (size_t c = i; c < channels; ++c) last[c - i] = source[c];
  V::store(wide, V::load(last));
  for (size_t c = i; c < channels; ++c) target[c] = wide[c - i];
}

template <class V>
void narrow_float16(const float* source, size_t channels, Float16* target) {
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) V::store_float16(target + i, V::load(source + i));
  if (i == channels) return;
  float last[V::kWidth] = {};
  Float16 narrow[V::kWidth];
  for (size_t c = i; c < channels; ++c) last[c - i] = source[c];
  V::store_float16(narrow, V::load(last));
  for (size_t c = i; c < channels; ++c) target[c] = narrow[c - i];
}

inline void widen_bfloat16(const BFloat16* source, size_t channels, float* target) {
  for (size_t i = 0; i < channels; ++i) target[i] = widened(source[i]);
}

inline void narrow_bfloat16(const float* source, size_t channels, BFloat16* target) {
  for (size_t i = 0; i < channels; ++i) {
    const auto bits = static_cast<uint32_t>(bits_of(source[i]));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i].bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

}  // namespace
}  // namespace nm_export
