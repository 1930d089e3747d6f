// AVX2, FMA and F16C as isa/vector_concept.h wants them: eight lanes.
#pragma once

#include <immintrin.h>

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

  static constexpr bool kConvertsBytes = true;
  template <bool kSigned>
  static Int load_bytes(const uint8_t* source) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
    return kSigned ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  template <bool kSigned>
  static Int low_four(Int bytes) {
    if (kSigned) return _mm256_srai_epi32(_mm256_slli_epi32(bytes, 28), 28);
    return _mm256_and_si256(bytes, broadcast_int(15));
  }
  template <bool kSigned>
  static Int high_four(Int bytes) {
    return kSigned ? _mm256_srai_epi32(bytes, 4) : _mm256_srli_epi32(bytes, 4);
  }
  static void zip(Float even, Float odd, Float& low, Float& high) {
    const Float first = _mm256_unpacklo_ps(even, odd);
    const Float second = _mm256_unpackhi_ps(even, odd);
    low = _mm256_permute2f128_ps(first, second, 0x20);
    high = _mm256_permute2f128_ps(first, second, 0x31);
  }
  static void unzip(Float low, Float high, Float& even, Float& odd) {
    even = exchange_middle_quarters(_mm256_shuffle_ps(low, high, 0x88));
    odd = exchange_middle_quarters(_mm256_shuffle_ps(low, high, 0xdd));
  }

  static constexpr bool kDots4 = true;
  static constexpr bool kLoadsFewBytes = false;
  static Int load_quantized(const uint8_t* source, size_t) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  }
  static Int xor_int(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static constexpr bool kFlipsNibbles = false;
  static Int nibbles(Int v, Int) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static Int high_nibbles(Int v, Int flip) { return nibbles(_mm256_srli_epi16(v, 4), flip); }
  static void interleave(const Int* row, Int* v) {
    const Int low_01 = _mm256_unpacklo_epi8(row[0], row[1]);
    const Int low_23 = _mm256_unpacklo_epi8(row[2], row[3]);
    const Int high_01 = _mm256_unpackhi_epi8(row[0], row[1]);
    const Int high_23 = _mm256_unpackhi_epi8(row[2], row[3]);
    v[0] = _mm256_unpacklo_epi16(low_01, low_23);
    v[1] = _mm256_unpackhi_epi16(low_01, low_23);
    v[2] = _mm256_unpacklo_epi16(high_01, high_23);
    v[3] = _mm256_unpackhi_epi16(high_01, high_23);
  }
  // Products are added in pairs of 16 bits, which must not saturate: weights of 8 bits are taken in two parts.
  template <size_t kBits>
  static Int dot4(Int sums, Int weights, Int activations) {
    const Int ones = _mm256_set1_epi16(1);
    if (kBits == 4) return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, activations), ones));
    const Int top = _mm256_set1_epi8(-128);
    const Int low = _mm256_maddubs_epi16(_mm256_andnot_si256(top, weights), activations);
    const Int high = _mm256_maddubs_epi16(_mm256_and_si256(top, weights), activations);
    const Int both = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
    return _mm256_add_epi32(sums, both);
  }
  static Int blocks_of(size_t length, size_t first, size_t size) {
    const auto low = static_cast<int>(first / size);
    const auto high = static_cast<int>((length + first) / size);
    return _mm256_setr_epi32(low, low, low, low, high, high, high, high);
  }
  static Int look_up(const void* numbers, Int index) {
    return _mm256_permutevar8x32_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(numbers)), index);
  }
  static Float bits_to_float(Int v) { return _mm256_castsi256_ps(v); }
  static void zip_parts(Float a, Float b, Float& low, Float& high) {
    low = _mm256_unpacklo_ps(a, b);
    high = _mm256_unpackhi_ps(a, b);
  }
  static void add_parts(float* y, size_t stride, const Float* v) {
    for (size_t i = 0; i < 4; i += 2) {
      add_to(y + i * 4, _mm256_permute2f128_ps(v[i], v[i + 1], 0x20));
      add_to(y + stride + i * 4, _mm256_permute2f128_ps(v[i], v[i + 1], 0x31));
    }
  }

 private:
  static __m128i load_halves(const void* source) { return _mm_loadu_si128(static_cast<const __m128i*>(source)); }
  static Float exchange_middle_quarters(Float v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  }
  static void add_to(float* y, Float sums) { store(y, add(load(y), sums)); }
};

}  // namespace
}  // namespace nm_export
