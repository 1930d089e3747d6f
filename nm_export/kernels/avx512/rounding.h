// AVX-512: values times scales, rounded to 8 bits. A lane is a block of columns.
#pragma once

#include <immintrin.h>

#include "integer_kernels_impl.h"

namespace nm_export {
namespace {

static_assert(kStretchBlocks == 16, "a vector holds the blocks that are rounded together");

// As many blocks as there are; in the other lanes scales are 0.
inline __m512 load_scales(const float* scales, size_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(0xffffu >> (kStretchBlocks - count)), scales);
}

// Absolute values are compared as integers: a NaN is above infinity.
inline __m512i larger(__m512i largest, __m512 product) {
  return _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(product)));
}

// What products are multiplied by before they are rounded, of their largest absolute values, as bits. Sets the step
// and what is left unrounded.
inline __m512 find_steps(__m512i largest, RoundedValues& rounded) {
  const __m512i smallest = _mm512_castps_si512(_mm512_set1_ps(kSmallestScale));
  const __mmask16 enough = _mm512_cmpge_epi32_mask(largest, smallest);
  const __mmask16 good = _mm512_mask_cmplt_epi32_mask(enough, largest, _mm512_set1_epi32(kInfinityBits));
  const __m512 a = _mm512_castsi512_ps(largest);
  const __m512 most = _mm512_set1_ps(static_cast<float>(kLargestValue));
  _mm512_store_ps(rounded.step, _mm512_maskz_div_ps(good, a, most));
  rounded.unrounded = _mm512_test_epi32_mask(largest, largest) & ~static_cast<uint32_t>(good);
  return _mm512_maskz_div_ps(good, most, a);
}

// Puts the low byte of each number at the given place of four.
inline __m512i insert_byte(__m512i quad, __m512i numbers, unsigned place) {
  const __m512i byte = _mm512_set1_epi32(static_cast<int>(0xffu << (8 * place)));
  // byte ? shifted : quad
  return _mm512_ternarylogic_epi32(byte, _mm512_slli_epi32(numbers, 8 * place), quad, 0xca);
}

template <size_t kBits, bool kSigned>
class Avx512Rounder {
 public:
  Avx512Rounder(const Weight& weight, const AddedRows& rows) : weight_(weight), rows_(rows) {}

  void round(size_t first, size_t count, RoundedValues& rounded) const {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < rows_.count; ++i) largest = larger(largest, product(i, first, count));
    const __m512 reciprocal = find_steps(largest, rounded);
    rounded.unrounded &= (1u << count) - 1;  // a NaN is one times no scale, too
    __m512i zero = _mm512_setzero_si512();
    for (size_t g = 0; g < rows_.quads; ++g) {
      __m512i quad = _mm512_setzero_si512();
      for (unsigned i = 0; i < kQuad; ++i) {
        const size_t row = g * kQuad + i;
        const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(product(row, first, count), reciprocal));
        quad = insert_byte(quad, integers, i);
        zero = _mm512_add_epi32(zero, times_zero_point(integers, row, first, count));
      }
      _mm512_store_si512(rounded.quads[g], quad);
    }
    if (weight_.zero_points == nullptr) {
      zero = _mm512_mullo_epi32(zero, _mm512_set1_epi32(unsigned_shift<kBits, kSigned>()));
    }
    _mm512_store_si512(rounded.zero, zero);
  }

 private:
  __m512 product(size_t row, size_t first, size_t count) const {
    const __m512 scales = load_scales(weight_.scales + rows_.block[row] + first, count);
    return _mm512_mul_ps(_mm512_set1_ps(rows_.value[row]), scales);
  }
  __m512i times_zero_point(__m512i integers, size_t row, size_t first, size_t count) const {
    if (weight_.zero_points == nullptr) return integers;
    int32_t zero_points[kStretchBlocks];
    load_zero_points<kBits, kSigned>(weight_.zero_points, rows_.block[row] + first, count, zero_points);
    return _mm512_mullo_epi32(integers, _mm512_loadu_si512(zero_points));
  }

  const Weight& weight_;
  const AddedRows& rows_;
};

}  // namespace
}  // namespace nm_export
