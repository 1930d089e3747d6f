// AVX2: sums of products of bytes. They are added in pairs of 16 bits, as often as these cannot overflow, and integers
// are taken in halves of 4 bits.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nm_export {
namespace {

template <size_t kBits>
class Avx2Dot4Sums {
 public:
  static constexpr size_t kOutputs = 32 * 8 / kBits;
  static constexpr size_t kMostAdds = 4;  // of 4 * 127 * 15 at most: 30,480

  Avx2Dot4Sums() {
    for (__m256i& sum : sums_) sum = _mm256_setzero_si256();
  }

  void add(const uint8_t* const* rows, size_t offset, size_t, uint32_t, const uint32_t* pairs) {
    add_pair(rows[0] + offset, rows[1] + offset, pairs[0]);
    add_pair(rows[2] + offset, rows[3] + offset, pairs[1]);
  }

  void widen() {
    widen(sums_);
    low_first_ = high_first_ = low_second_ = high_second_ = _mm256_setzero_si256();
  }

  void in_order(__m256i* v) const {
    for (size_t i = 0; i < kOutputs / 8; ++i) v[i] = sums_[i];
  }

 private:
  void add_pair(const uint8_t* row, const uint8_t* other, uint32_t pair) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i activations = _mm256_set1_epi32(static_cast<int>(pair));
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
    const __m256i others = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other));
    const auto low = [&](__m256i both) { return _mm256_maddubs_epi16(_mm256_and_si256(both, mask), activations); };
    const __m256i first = _mm256_unpacklo_epi8(bytes, others);
    const __m256i second = _mm256_unpackhi_epi8(bytes, others);
    low_first_ = _mm256_add_epi16(low_first_, low(first));
    high_first_ = _mm256_add_epi16(high_first_, low(_mm256_srli_epi16(first, 4)));
    low_second_ = _mm256_add_epi16(low_second_, low(second));
    high_second_ = _mm256_add_epi16(high_second_, low(_mm256_srli_epi16(second, 4)));
  }

  static __m256i wide_low(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)); }
  static __m256i wide_high(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)); }

  // The two halves of a byte are two outputs.
  void widen(__m256i (&sums)[8]) const {
    const __m256i in_turn[4] = {
        _mm256_unpacklo_epi16(low_first_, high_first_), _mm256_unpackhi_epi16(low_first_, high_first_),
        _mm256_unpacklo_epi16(low_second_, high_second_), _mm256_unpackhi_epi16(low_second_, high_second_)};
    for (size_t i = 0; i < 4; ++i) {
      sums[i] = _mm256_add_epi32(sums[i], wide_low(in_turn[i]));
      sums[4 + i] = _mm256_add_epi32(sums[4 + i], wide_high(in_turn[i]));
    }
  }

  // The two halves of a byte are one integer.
  void widen(__m256i (&sums)[4]) const {
    const auto add = [](__m256i sum, __m256i low, __m256i high) {
      return _mm256_add_epi32(sum, _mm256_add_epi32(low, _mm256_slli_epi32(high, 4)));
    };
    sums[0] = add(sums[0], wide_low(low_first_), wide_low(high_first_));
    sums[1] = add(sums[1], wide_low(low_second_), wide_low(high_second_));
    sums[2] = add(sums[2], wide_high(low_first_), wide_high(high_first_));
    sums[3] = add(sums[3], wide_high(low_second_), wide_high(high_second_));
  }

  // 16 bits each: of the low and the high halves of bytes 0 to 7 and 16 to 23 (first), and of the others (second).
  __m256i low_first_ = _mm256_setzero_si256();
  __m256i high_first_ = _mm256_setzero_si256();
  __m256i low_second_ = _mm256_setzero_si256();
  __m256i high_second_ = _mm256_setzero_si256();
  __m256i sums_[kOutputs / 8];
};

}  // namespace
}  // namespace nm_export
