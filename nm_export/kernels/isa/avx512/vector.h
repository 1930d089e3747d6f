// AVX-512 F, BW and DQ as isa/vector_concept.h wants them: sixteen lanes.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "isa/avx512/dot4_sums.h"
#include "isa/vector_concept.h"
#include "selection/score_key.h"

namespace nm_export {
namespace {

struct Avx512Vector {
  static constexpr size_t kWidth = 16;
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;

  static Float load(const float* source) { return _mm512_loadu_ps(source); }
  static Float load(const Float16* source) { return _mm512_cvtph_ps(load_halves(source)); }
  static Float load(const BFloat16* source) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(source)), 16));
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { _mm512_storeu_ps(target, v); }
  static void store_float16(Float16* target, Float v) {
    const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), half);
  }
  static Int load_int(const int32_t* source) { return _mm512_loadu_si512(source); }
  static void store_int(int32_t* target, Int v) { _mm512_storeu_si512(target, v); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Int broadcast_int(int32_t value) { return _mm512_set1_epi32(value); }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  static void prefetch_near(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
  // Eight integers of 4 bits are one number of 32, from which every lane takes its own.
  template <size_t kBits>
  static Float integers(const uint8_t* source) {
    if (kBits == 8) {
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
    }
    int32_t halves[2];
    memcpy(halves, source, sizeof halves);
    const Int all = _mm512_inserti64x4(broadcast_int(halves[0]), _mm256_set1_epi32(halves[1]), 1);
    const Int shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(all, shifts), broadcast_int(15)));
  }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static bool any_nan(Float v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
  static Mask less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static uint32_t nonzero(Float v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static Float where(uint32_t bits, Float v) { return _mm512_maskz_mov_ps(static_cast<Mask>(bits), v); }

  static Int key(Float z, Float score) {
    const Int bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_abs_ps(z), score));
    return _mm512_min_epi32(_mm512_and_si512(bits, broadcast_int(kMagnitudeBits)), broadcast_int(kNanKey));
  }

  static Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub_int(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int max_int(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Int min_int(Int a, Int b) { return _mm512_min_epi32(a, b); }
  static Mask greater(Int a, Int b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static Mask equal(Int a, Int b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Mask both(Mask a, Mask b) { return _kand_mask16(a, b); }
  static Int or_unless(Mask mask, Int v, Int bit) { return _mm512_mask_or_epi32(v, _knot_mask16(mask), v, bit); }
  static Int clear_where(Mask mask, Int v, Int bit) { return _mm512_mask_andnot_epi32(v, mask, bit, v); }
  static Int increment_unless(Mask mask, Int v) {
    return _mm512_mask_add_epi32(v, _knot_mask16(mask), v, broadcast_int(1));
  }
  static Int increment_where(Mask mask, Int v) { return _mm512_mask_add_epi32(v, mask, v, broadcast_int(1)); }
  static Int decrement_where(Mask mask, Int v) { return _mm512_mask_sub_epi32(v, mask, v, broadcast_int(1)); }
  static bool any_positive(Int v) { return _mm512_cmpgt_epi32_mask(v, broadcast_int(0)) != 0; }

  static Int load_channel(const int32_t* source, int m) {
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(first_integers(), broadcast_int(m)), source, 4);
  }
  // Row r holds four channels of the groups r, r + 4, r + 8 and r + 12; each quarter is then a 4 x 4 transpose.
  static void load_four_channels(const int32_t* source, int m, Int* channel) {
    Int row[4];
    for (int r = 0; r < 4; ++r) {
      const auto quarter = [=](int q) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + (r + 4 * q) * m));
      };
      Int joined = _mm512_castsi128_si512(quarter(0));
      joined = _mm512_inserti32x4(joined, quarter(1), 1);
      joined = _mm512_inserti32x4(joined, quarter(2), 2);
      row[r] = _mm512_inserti32x4(joined, quarter(3), 3);
    }
    const Int low01 = _mm512_unpacklo_epi32(row[0], row[1]);
    const Int high01 = _mm512_unpackhi_epi32(row[0], row[1]);
    const Int low23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const Int high23 = _mm512_unpackhi_epi32(row[2], row[3]);
    channel[0] = _mm512_unpacklo_epi64(low01, low23);
    channel[1] = _mm512_unpackhi_epi64(low01, low23);
    channel[2] = _mm512_unpacklo_epi64(high01, high23);
    channel[3] = _mm512_unpackhi_epi64(high01, high23);
  }

  static constexpr size_t kDoubles = 8;
  using Double = __m512d;
  static Double widen(const float* source) { return _mm512_cvtps_pd(_mm256_loadu_ps(source)); }
  static void store_double(double* target, Double v) { _mm512_storeu_pd(target, v); }
  static Double broadcast_double(double value) { return _mm512_set1_pd(value); }
  static Double add_double(Double a, Double b) { return _mm512_add_pd(a, b); }
  static Double sub_double(Double a, Double b) { return _mm512_sub_pd(a, b); }
  static Double mul_double(Double a, Double b) { return _mm512_mul_pd(a, b); }

  static constexpr bool kComparesToBits = true;
  static uint32_t at_least(Int a, Int b) { return _mm512_cmpge_epi32_mask(a, b); }
  static int count_bits(uint64_t word) { return static_cast<int>(_mm_popcnt_u64(word)); }
  template <int kM>
  static Int of_groups(const int32_t* numbers, int v) {
    constexpr int kLanes = static_cast<int>(kWidth);
    if (kM >= kLanes) return broadcast_int(numbers[v * kLanes / kM]);
    const Int group =
        _mm512_add_epi32(_mm512_srli_epi32(first_integers(), kM == 4 ? 2 : 3), broadcast_int(v * kLanes / kM));
    return _mm512_permutexvar_epi32(group, load_int(numbers));
  }

  static constexpr bool kCompresses = true;
  static uint32_t at_least_and_below(Float v, Float first, Float limit) {
    const Mask reached = _mm512_cmp_ps_mask(v, first, _CMP_GE_OQ);
    return _mm512_mask_cmp_ps_mask(reached, v, limit, _CMP_NGE_UQ);
  }
  // To a register: to memory it is microcode on some processors.
  static Float compress(uint32_t bits, Float v) { return _mm512_maskz_compress_ps(static_cast<Mask>(bits), v); }
  static Int compress_int(uint32_t bits, Int v) { return _mm512_maskz_compress_epi32(static_cast<Mask>(bits), v); }
  static Int first_integers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

  static constexpr bool kDots4 = true;
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static constexpr bool kLoadsFew = true;
  static Float load_few(const float* source, size_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), source); }
  static Float load_few(const Float16* source, size_t count) {
    // Without AVX-512VL there are no masks for shorter vectors.
    const Int halves = _mm512_maskz_loadu_epi16(first_lanes(count), source);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
  }
  static void store_few(float* target, size_t count, Float v) { _mm512_mask_storeu_ps(target, first_lanes(count), v); }
  template <size_t kBits>
  using Dot4Sums = Avx512Dot4Sums<Avx512PairSums, kBits>;

 private:
  static Mask first_lanes(size_t count) { return static_cast<Mask>((1u << count) - 1); }
  static __m256i load_halves(const void* source) { return _mm256_loadu_si256(static_cast<const __m256i*>(source)); }
};

}  // namespace
}  // namespace nm_export
