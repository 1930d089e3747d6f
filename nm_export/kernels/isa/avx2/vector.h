// AVX2, FMA and F16C as isa/vector_concept.h wants them: eight lanes.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "isa/avx2/dot4_sums.h"
#include "isa/vector_concept.h"
#include "selection/score_key.h"

namespace nm_export {
namespace {

struct Avx2Vector {
  static constexpr size_t kWidth = 8;
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256i;  // all bits set where true

  static Float load(const float* source) { return _mm256_loadu_ps(source); }
  static Float load(const Float16* source) { return _mm256_cvtph_ps(load_halves(source)); }
  static Float load(const BFloat16* source) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(source)), 16));
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { _mm256_storeu_ps(target, v); }
  static void store_float16(Float16* target, Float v) {
    const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), half);
  }
  static Int load_int(const int32_t* source) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)); }
  static void store_int(int32_t* target, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), v); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Int broadcast_int(int32_t value) { return _mm256_set1_epi32(value); }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  static void prefetch_near(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
  // Eight integers of 4 bits are one number of 32, from which every lane takes its own.
  template <size_t kBits>
  static Float integers(const uint8_t* source) {
    if (kBits == 8) {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
    }
    int32_t all;
    memcpy(&all, source, sizeof all);
    const Int shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(broadcast_int(all), shifts), broadcast_int(15)));
  }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static bool any_nan(Float v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }
  static Mask less(Float a, Float b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  static uint32_t nonzero(Float v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
  static Float where(uint32_t bits, Float v) {
    const Int bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const Int set = equal(_mm256_and_si256(broadcast_int(static_cast<int32_t>(bits)), bit), bit);
    return _mm256_and_ps(v, _mm256_castsi256_ps(set));
  }

  static Int key(Float z, Float score) {
    const Int magnitude_bits = broadcast_int(kMagnitudeBits);
    const Float s = _mm256_mul_ps(_mm256_and_ps(z, _mm256_castsi256_ps(magnitude_bits)), score);
    return _mm256_min_epi32(_mm256_and_si256(_mm256_castps_si256(s), magnitude_bits), broadcast_int(kNanKey));
  }

  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub_int(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int max_int(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Int min_int(Int a, Int b) { return _mm256_min_epi32(a, b); }
  static Mask greater(Int a, Int b) { return _mm256_cmpgt_epi32(a, b); }
  static Mask equal(Int a, Int b) { return _mm256_cmpeq_epi32(a, b); }
  static Mask both(Mask a, Mask b) { return _mm256_and_si256(a, b); }
  static Int or_unless(Mask mask, Int v, Int bit) { return _mm256_or_si256(v, _mm256_andnot_si256(mask, bit)); }
  static Int clear_where(Mask mask, Int v, Int bit) { return _mm256_andnot_si256(_mm256_and_si256(mask, bit), v); }
  static Int increment_unless(Mask mask, Int v) {
    return _mm256_add_epi32(v, _mm256_add_epi32(mask, broadcast_int(1)));
  }
  static Int increment_where(Mask mask, Int v) { return _mm256_sub_epi32(v, mask); }
  static Int decrement_where(Mask mask, Int v) { return _mm256_add_epi32(v, mask); }
  static bool any_positive(Int v) { return !_mm256_testz_si256(greater(v, broadcast_int(0)), broadcast_int(-1)); }

  static Int load_channel(const int32_t* source, int m) {
    const Int lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_epi32(source, _mm256_mullo_epi32(lane, broadcast_int(m)), 4);
  }
  // Row r holds four channels of the groups r and r + 4; each half is then a 4 x 4 transpose.
  static void load_four_channels(const int32_t* source, int m, Int* channel) {
    Int row[4];
    for (int r = 0; r < 4; ++r) {
      const auto* first = reinterpret_cast<const __m128i*>(source + r * m);
      const auto* second = reinterpret_cast<const __m128i*>(source + (r + 4) * m);
      row[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(first)), _mm_loadu_si128(second), 1);
    }
    const Int low01 = _mm256_unpacklo_epi32(row[0], row[1]);
    const Int high01 = _mm256_unpackhi_epi32(row[0], row[1]);
    const Int low23 = _mm256_unpacklo_epi32(row[2], row[3]);
    const Int high23 = _mm256_unpackhi_epi32(row[2], row[3]);
    channel[0] = _mm256_unpacklo_epi64(low01, low23);
    channel[1] = _mm256_unpackhi_epi64(low01, low23);
    channel[2] = _mm256_unpacklo_epi64(high01, high23);
    channel[3] = _mm256_unpackhi_epi64(high01, high23);
  }

  static constexpr size_t kDoubles = 4;
  using Double = __m256d;
  static Double widen(const float* source) { return _mm256_cvtps_pd(_mm_loadu_ps(source)); }
  static void store_double(double* target, Double v) { _mm256_storeu_pd(target, v); }
  static Double broadcast_double(double value) { return _mm256_set1_pd(value); }
  static Double add_double(Double a, Double b) { return _mm256_add_pd(a, b); }
  static Double sub_double(Double a, Double b) { return _mm256_sub_pd(a, b); }
  static Double mul_double(Double a, Double b) { return _mm256_mul_pd(a, b); }

  static constexpr bool kComparesToBits = false;
  static constexpr bool kCompresses = false;

  static constexpr bool kDots4 = true;
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static constexpr bool kLoadsFew = false;
  template <size_t kBits>
  using Dot4Sums = Avx2Dot4Sums<kBits>;

 private:
  static __m128i load_halves(const void* source) { return _mm_loadu_si128(static_cast<const __m128i*>(source)); }
};

}  // namespace
}  // namespace nm_export
