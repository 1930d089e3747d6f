// AVX-512 F, BW and DQ: sixteen lanes.
#include <immintrin.h>

#include "row_kernels_impl.h"

namespace nm_export {
namespace {

struct Avx512Lanes {
  static constexpr int kWidth = 16;
  using Int = __m512i;
  using Float = __m512;
  using Mask = __mmask16;

  static Float load(const float* source) { return _mm512_loadu_ps(source); }
  static void store(float* target, Float v) { _mm512_storeu_ps(target, v); }
  static Int load_int(const int32_t* source) { return _mm512_loadu_si512(source); }
  static void store_int(int32_t* target, Int v) { _mm512_storeu_si512(target, v); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Int broadcast_int(int32_t value) { return _mm512_set1_epi32(value); }
  static Int load_channel(const int32_t* source, int m) {
    const Int lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, broadcast_int(m)), source, 4);
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
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Int key(Float z, Float score) {
    const Int bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_abs_ps(z), score));
    return _mm512_min_epi32(_mm512_and_si512(bits, broadcast_int(kMagnitudeBits)), broadcast_int(kNanKey));
  }
  static Int max(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Int min(Int a, Int b) { return _mm512_min_epi32(a, b); }
  static constexpr bool kComparesToBits = true;
  static uint32_t at_least(Int a, Int b) { return _mm512_cmpge_epi32_mask(a, b); }
  static int count_bits(uint64_t word) { return static_cast<int>(_mm_popcnt_u64(word)); }
  // What belongs to the groups of vector `v` of a block of groups of kM, one number for each channel.
  template <int kM>
  static Int of_groups(const int32_t* numbers, int v) {
    if (kM >= kWidth) return broadcast_int(numbers[v * kWidth / kM]);
    const Int channel = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Int group = _mm512_add_epi32(_mm512_srli_epi32(channel, kM == 4 ? 2 : 3), broadcast_int(v * kWidth / kM));
    return _mm512_permutexvar_epi32(group, load_int(numbers));
  }
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
  static Float where(uint32_t mask, Float v) { return _mm512_maskz_mov_ps(static_cast<Mask>(mask), v); }

  static bool any_nan(Float v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
  static Mask less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static constexpr bool kCompresses = true;
  // Stores the lanes that are at least `first` and not at least `limit` one after another; returns what is behind them.
  static float* store_between(float* target, Float v, Float first, Float limit) {
    const Mask reached = _mm512_cmp_ps_mask(v, first, _CMP_GE_OQ);
    const Mask between = _mm512_mask_cmp_ps_mask(reached, v, limit, _CMP_NGE_UQ);
    store(target, _mm512_maskz_compress_ps(between, v));  // to memory it is microcode on some processors
    return target + count_bits(between);
  }

  static Float load_half(const uint16_t* source) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  static void store_half(uint16_t* target, Float v) {
    const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), half);
  }

  static constexpr int kDoubles = 8;
  using Double = __m512d;
  static Double widen(const float* source) { return _mm512_cvtps_pd(_mm256_loadu_ps(source)); }
  static void store_double(double* target, Double v) { _mm512_storeu_pd(target, v); }
  static Double broadcast_double(double value) { return _mm512_set1_pd(value); }
  static Double add_double(Double a, Double b) { return _mm512_add_pd(a, b); }
  static Double sub_double(Double a, Double b) { return _mm512_sub_pd(a, b); }
  static Double mul_double(Double a, Double b) { return _mm512_mul_pd(a, b); }
};

}  // namespace

const RowKernels kAvx512Kernels = row_kernels<Avx512Lanes>();

}  // namespace nm_export
