// AVX2, FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "product_kernels_impl.h"

namespace nm_export {
namespace {

struct Avx2Products {
  static constexpr size_t kWidth = 8;
  using Float = __m256;

  static Float load(const float* source) { return _mm256_loadu_ps(source); }
  static Float load(const Float16* source) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
  static Float load(const BFloat16* source) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { _mm256_storeu_ps(target, v); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static uint32_t nonzero(Float v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }

  // Eight codes of 4 bits are one number of 32, from which every lane takes its own.
  template <size_t kBits>
  static Float codes(const uint8_t* bytes) {
    if (kBits == 8) {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
    }
    int32_t all;
    memcpy(&all, bytes, sizeof all);
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(all), shifts);
    return _mm256_cvtepi32_ps(_mm256_and_si256(nibbles, _mm256_set1_epi32(15)));
  }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    return compact_one_by_one(v, channels, first, row, value);
  }
};

}  // namespace
}  // namespace nm_export
