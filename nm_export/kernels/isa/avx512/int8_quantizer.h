// AVX-512: activations rounded to int8, a panel at a time; a lane is a block of outputs. ScalarQuantizer of
// product/int8_kernels_impl.h says what is computed.
#pragma once

#include "isa/avx512/vector.h"
#include "product/int8_kernels_impl.h"

namespace nm_export {
namespace {

static_assert(kPanelBlocks == Avx512Vector::kWidth, "a vector holds the blocks that are rounded together");

// As many blocks as there are; in the other lanes scales are 0.
inline __m512 load_scales(const float* scales, size_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(0xffffu >> (kPanelBlocks - count)), scales);
}

// Absolute values are compared as integers: a NaN is above infinity.
inline __m512i larger(__m512i largest, __m512 product) {
  return Avx512Vector::max_int(largest, _mm512_castps_si512(_mm512_abs_ps(product)));
}

// What products are multiplied by before they are rounded, of their largest absolute values, as bits. Sets the scale
// and which blocks cannot be rounded.
inline __m512 find_scales(__m512i largest, Int8Activations& activations) {
  const __m512i smallest = _mm512_castps_si512(Avx512Vector::broadcast(kSmallestScale));
  const __mmask16 enough = _mm512_cmpge_epi32_mask(largest, smallest);
  const __mmask16 good = _mm512_mask_cmplt_epi32_mask(enough, largest, Avx512Vector::broadcast_int(kInfinityBits));
  const __m512 a = _mm512_castsi512_ps(largest);
  const __m512 most = Avx512Vector::broadcast(static_cast<float>(kLargestActivation));
  _mm512_store_ps(activations.scale, _mm512_maskz_div_ps(good, a, most));
  activations.as_float = _mm512_test_epi32_mask(largest, largest) & ~static_cast<uint32_t>(good);
  return _mm512_maskz_div_ps(good, most, a);
}

// Puts the low byte of each number at the given place of a dot4 group.
inline __m512i insert_byte(__m512i group, __m512i numbers, unsigned place) {
  const __m512i byte = Avx512Vector::broadcast_int(static_cast<int>(0xffu << (8 * place)));
  // byte ? shifted : group
  return _mm512_ternarylogic_epi32(byte, _mm512_slli_epi32(numbers, 8 * place), group, 0xca);
}

template <size_t kBits, bool kSigned>
class Avx512Quantizer {
 public:
  using V = Avx512Vector;

  Avx512Quantizer(const Weight& weight, const AddedRows& rows) : weight_(weight), rows_(rows) {}

  void quantize(size_t first, size_t count, Int8Activations& activations) const {
    __m512i largest = V::broadcast_int(0);
    for (size_t i = 0; i < rows_.count; ++i) largest = larger(largest, product(i, first, count));
    const __m512 reciprocal = find_scales(largest, activations);
    activations.as_float &= (1u << count) - 1;  // a NaN is one times no scale, too
    __m512i zero_sum = V::broadcast_int(0);
    for (size_t g = 0; g < rows_.groups; ++g) {
      __m512i group = V::broadcast_int(0);
      for (unsigned i = 0; i < kDot4; ++i) {
        const size_t row = g * kDot4 + i;
        const __m512i integers = _mm512_cvtps_epi32(V::mul(product(row, first, count), reciprocal));
        group = insert_byte(group, integers, i);
        zero_sum = V::add_int(zero_sum, times_zero_point(integers, row, first, count));
      }
      _mm512_store_si512(activations.groups[g], group);
    }
    if (weight_.zero_points == nullptr) {
      zero_sum = V::mul_int(zero_sum, V::broadcast_int(unsigned_shift<kBits, kSigned>()));
    }
    _mm512_store_si512(activations.zero_sum, zero_sum);
  }

 private:
  __m512 product(size_t row, size_t first, size_t count) const {
    const __m512 scales = load_scales(weight_.scales + rows_.block[row] + first, count);
    return V::mul(V::broadcast(rows_.value[row]), scales);
  }
  __m512i times_zero_point(__m512i integers, size_t row, size_t first, size_t count) const {
    if (weight_.zero_points == nullptr) return integers;
    int32_t zero_points[kPanelBlocks];
    load_zero_points<kBits, kSigned>(weight_.zero_points, rows_.block[row] + first, count, zero_points);
    return V::mul_int(integers, V::load_int(zero_points));
  }

  const Weight& weight_;
  const AddedRows& rows_;
};

}  // namespace
}  // namespace nm_export
