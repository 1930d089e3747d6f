// AVX-512: sums of bytes in sixteen lanes, over a class `Products` that multiplies them.
#pragma once

#include <immintrin.h>

#include "avx2/half_numbers.h"
#include "integer_kernels_impl.h"

namespace nm_export {
namespace {

// Four rows, of which every number of 32 bits holds the four bytes of a column (of two columns of 4 bits). Quarter q of
// vector i holds the numbers 16 q + 4 i to 16 q + 4 i + 3.
struct Columns {
  __m512i at[4];
};

// Reads up to 64 bytes of each.
inline Columns interleaved(const uint8_t* const* rows, size_t offset, size_t bytes) {
  const __mmask64 used = ~uint64_t{0} >> (64 - bytes);
  __m512i row[4];
  for (size_t i = 0; i < 4; ++i) row[i] = _mm512_maskz_loadu_epi8(used, rows[i] + offset);
  const __m512i low_01 = _mm512_unpacklo_epi8(row[0], row[1]);
  const __m512i low_23 = _mm512_unpacklo_epi8(row[2], row[3]);
  const __m512i high_01 = _mm512_unpackhi_epi8(row[0], row[1]);
  const __m512i high_23 = _mm512_unpackhi_epi8(row[2], row[3]);
  return {{_mm512_unpacklo_epi16(low_01, low_23), _mm512_unpackhi_epi16(low_01, low_23),
           _mm512_unpacklo_epi16(high_01, high_23), _mm512_unpackhi_epi16(high_01, high_23)}};
}

// Vector q of `turned` is quarter q of the four vectors in turn.
inline void turn_quarters(const __m512i* v, __m512i* turned) {
  const __m512i low_01 = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i low_23 = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i high_01 = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i high_23 = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  turned[0] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
  turned[1] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
  turned[2] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
  turned[3] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
}

// The lanes from number `first` on that are among `count`.
inline __mmask16 lanes_of(size_t first, size_t count) {
  if (first >= count) return 0;
  return static_cast<__mmask16>(count - first >= 16 ? 0xffffu : (1u << (count - first)) - 1);
}

inline __m512 load_numbers(const float* source, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, source); }
inline __m512 load_numbers(const Float16* source, __mmask16 lanes) {
  // Without AVX-512VL there are no masks for shorter vectors.
  const __m512i halves = _mm512_maskz_loadu_epi16(lanes, source);
  return _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
}

// sums + scale * (integers - zero point * sum of values)
inline __m512 sum_scaled(__m512 sums, __m512i integers, __m512 zero_point, __m512 of_values, __m512 scale) {
  return _mm512_fmadd_ps(scale, _mm512_fnmadd_ps(zero_point, of_values, _mm512_cvtepi32_ps(integers)), sums);
}

// Products::Sums<bits> are the sums of a vector of columns:
//
//   add(codes, values)   of four neighbouring bytes without sign, times those of `values`, which have one
//   codes()              of 8 bits: the sums
//   low(), high()        of 4 bits: those of the low and of the high halves of bytes
template <class Products, size_t kBits>
struct Avx512Dots : HalfNumbers {
  static constexpr size_t kStep = 64 * 8 / kBits;
  static constexpr bool kReadsParts = true;
  template <class Scale, class Prefetch>
  static void add(const RoundedRows& rows, const uint8_t* const* codes, size_t offset, const GroupScales<Scale>& scales,
                  size_t column, size_t columns, float* y, Prefetch& prefetch) {
    if (columns == kStep) {  // with masks that the compiler knows
      add_columns<Scale>(rows, codes, offset, scales, column, kStep, y, prefetch);
    } else {
      add_columns<Scale>(rows, codes, offset, scales, column, columns, y, prefetch);
    }
  }

 private:
  using Sums = typename Products::template Sums<kBits>;

  template <class Scale, class Prefetch>
#ifdef __GNUC__
  __attribute__((always_inline))
#endif
  static inline void
  add_columns(const RoundedRows& rows, const uint8_t* const* codes, size_t offset, const GroupScales<Scale>& scales,
              size_t column, size_t columns, float* y, Prefetch& prefetch) {
    constexpr size_t kVectors = kStep / 16;
    Prefetch next = prefetch;
    for (size_t g = 0; g < rows.group_count; ++g) {
      const RoundedGroup& group = rows.groups[g];
      Sums sums[4];
      for (size_t q = 0; q < group.quad_count; ++q) {
        next.step();
        const Columns four = interleaved(codes + group.first_row + q * kQuad, offset, columns * kBits / 8);
        const __m512i values = _mm512_set1_epi32(static_cast<int>(group.quads[q]));
        for (size_t i = 0; i < 4; ++i) sums[i].add(four.at[i], values);
      }
      __m512i integers[kVectors];
      in_order(sums, integers);
      const __m512 step = _mm512_set1_ps(group.step);
      const __m512 sum = _mm512_set1_ps(group.sum);
      const Scale* zero_points = scales.zero_points[g];
      __m512 zero_point = _mm512_set1_ps(scales.zero_point);
      for (size_t i = 0; i < kVectors; ++i) {
        const __mmask16 lanes = lanes_of(i * 16, columns);
        if (zero_points != nullptr) zero_point = load_numbers(zero_points + column + i * 16, lanes);
        const __m512 scale = _mm512_mul_ps(step, load_numbers(scales.scales[g] + column + i * 16, lanes));
        const __m512 before = _mm512_maskz_loadu_ps(lanes, y + i * 16);
        _mm512_mask_storeu_ps(y + i * 16, lanes, sum_scaled(before, integers[i], zero_point, sum, scale));
      }
    }
    prefetch = next;
  }

  static void in_order(const Sums (&sums)[4], __m512i (&integers)[4]) {
    const __m512i codes[4] = {sums[0].codes(), sums[1].codes(), sums[2].codes(), sums[3].codes()};
    turn_quarters(codes, integers);
  }
  static void in_order(const Sums (&sums)[4], __m512i (&integers)[8]) {
    for (size_t h = 0; h < 2; ++h) {
      __m512i in_turn[4];
      for (size_t i = 0; i < 2; ++i) {
        const __m512i low = sums[h * 2 + i].low();
        const __m512i high = sums[h * 2 + i].high();
        in_turn[i * 2] = _mm512_unpacklo_epi32(low, high);
        in_turn[i * 2 + 1] = _mm512_unpackhi_epi32(low, high);
      }
      __m512i turned[4];
      turn_quarters(in_turn, turned);
      for (size_t q = 0; q < 4; ++q) integers[q * 2 + h] = turned[q];
    }
  }
};

}  // namespace
}  // namespace nm_export
