// AVX2: products of bytes are added in pairs of 16 bits, eight pairs before these could overflow.
#include <immintrin.h>

#include "avx2/half_numbers.h"
#include "integer_kernels_impl.h"

namespace nm_export {
namespace {

// 8 pairs of 127 * 15 are 30,480: the sums of so many quads of rows fit 16 bits.
constexpr size_t kQuadsAtOnce = 4;

__m256 load_numbers(const float* source) { return _mm256_loadu_ps(source); }
__m256 load_numbers(const Float16* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}

// Sums of 32 bytes of some rows, 16 bits each: of their low and of their high halves, with bytes 0 to 7 and 16 to 23 in
// `first`, the others in `second`.
struct HalfSums {
  __m256i low_first = _mm256_setzero_si256();
  __m256i high_first = _mm256_setzero_si256();
  __m256i low_second = _mm256_setzero_si256();
  __m256i high_second = _mm256_setzero_si256();
};

inline void add_pair(const uint8_t* row, const uint8_t* other, const uint32_t* pair, HalfSums& sums) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i values = _mm256_set1_epi32(static_cast<int>(*pair));
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  const __m256i others = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other));
  const auto low = [&](__m256i both) { return _mm256_maddubs_epi16(_mm256_and_si256(both, mask), values); };
  const __m256i first = _mm256_unpacklo_epi8(bytes, others);
  const __m256i second = _mm256_unpackhi_epi8(bytes, others);
  sums.low_first = _mm256_add_epi16(sums.low_first, low(first));
  sums.high_first = _mm256_add_epi16(sums.high_first, low(_mm256_srli_epi16(first, 4)));
  sums.low_second = _mm256_add_epi16(sums.low_second, low(second));
  sums.high_second = _mm256_add_epi16(sums.high_second, low(_mm256_srli_epi16(second, 4)));
}

__m256i wide_low(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)); }
__m256i wide_high(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)); }

// The two halves of a byte are two columns.
void widen_columns(const HalfSums& sums, __m256i (&columns)[8]) {
  const __m256i in_turn[4] = {_mm256_unpacklo_epi16(sums.low_first, sums.high_first),
                              _mm256_unpackhi_epi16(sums.low_first, sums.high_first),
                              _mm256_unpacklo_epi16(sums.low_second, sums.high_second),
                              _mm256_unpackhi_epi16(sums.low_second, sums.high_second)};
  for (size_t i = 0; i < 4; ++i) {
    columns[i] = _mm256_add_epi32(columns[i], wide_low(in_turn[i]));
    columns[4 + i] = _mm256_add_epi32(columns[4 + i], wide_high(in_turn[i]));
  }
}

// The two halves of a byte are one code.
void widen_columns(const HalfSums& sums, __m256i (&columns)[4]) {
  const auto add = [](__m256i sum, __m256i low, __m256i high) {
    return _mm256_add_epi32(sum, _mm256_add_epi32(low, _mm256_slli_epi32(high, 4)));
  };
  columns[0] = add(columns[0], wide_low(sums.low_first), wide_low(sums.high_first));
  columns[1] = add(columns[1], wide_low(sums.low_second), wide_low(sums.high_second));
  columns[2] = add(columns[2], wide_high(sums.low_first), wide_high(sums.high_first));
  columns[3] = add(columns[3], wide_high(sums.low_second), wide_high(sums.high_second));
}

template <size_t kBits>
struct Dots : HalfNumbers {
  static constexpr size_t kStep = 32 * 8 / kBits;
  static constexpr bool kReadsParts = false;
  template <class Scale, class Prefetch>
  static void add(const RoundedRows& rows, const uint8_t* const* codes, size_t offset, const GroupScales<Scale>& scales,
                  size_t column, size_t, float* y, Prefetch& prefetch) {
    constexpr size_t kVectors = kStep / 8;
    Prefetch next = prefetch;
    for (size_t g = 0; g < rows.group_count; ++g) {
      const RoundedGroup& group = rows.groups[g];
      __m256i integers[kVectors];
      for (size_t i = 0; i < kVectors; ++i) integers[i] = _mm256_setzero_si256();
      for (size_t q = 0; q < group.quad_count; q += kQuadsAtOnce) {
        const size_t end = group.quad_count - q < kQuadsAtOnce ? group.quad_count : q + kQuadsAtOnce;
        HalfSums sums;
        for (size_t i = q; i < end; ++i) {
          next.step();
          const uint8_t* const* row = codes + group.first_row + i * kQuad;
          add_pair(row[0] + offset, row[1] + offset, group.pairs + 2 * i, sums);
          add_pair(row[2] + offset, row[3] + offset, group.pairs + 2 * i + 1, sums);
        }
        widen_columns(sums, integers);
      }
      const __m256 step = _mm256_set1_ps(group.step);
      const __m256 sum = _mm256_set1_ps(group.sum);
      const Scale* zero_points = scales.zero_points[g];
      __m256 zero_point = _mm256_set1_ps(scales.zero_point);
      for (size_t i = 0; i < kVectors; ++i) {
        const size_t c = column + i * 8;
        if (zero_points != nullptr) zero_point = load_numbers(zero_points + c);
        const __m256 number = _mm256_fnmadd_ps(zero_point, sum, _mm256_cvtepi32_ps(integers[i]));
        const __m256 scale = _mm256_mul_ps(step, load_numbers(scales.scales[g] + c));
        _mm256_storeu_ps(y + i * 8, _mm256_fmadd_ps(scale, number, _mm256_loadu_ps(y + i * 8)));
      }
    }
    prefetch = next;
  }
};

}  // namespace

const IntegerKernels kAvx2Integers = integer_kernels<Dots>(nullptr);

}  // namespace nm_export
