// AVX-512: sums of products of bytes. With four rows a, b, c, d of 64 bytes:
//
//   rows, where they lie          interleaved: a number of 32 bits for each byte
//     a0 a1 a2 a3 ... a63           v[0] = a0 b0 c0 d0 | a1 b1 c1 d1 | ... | a3 b3 c3 d3 | a16 b16 c16 d16 | ...
//     b0 b1 b2 b3 ... b63           v[1] = a4 b4 c4 d4 | ...
//     c0 c1 c2 c3 ... c63           v[2] = a8 b8 c8 d8 | ...
//     d0 d1 d2 d3 ... d63           v[3] = a12 b12 c12 d12 | ... | a15 b15 c15 d15 | a28 b28 c28 d28 | ...
//
//   times the activations           qa qb qc qd | qa qb qc qd | ...
//
// Each quarter (128 bits) of v[i] has four neighbouring bytes of the rows; sums are put in order in the end.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nm_export {
namespace {

struct Interleaved {
  __m512i at[4];
};

// Reads up to 64 bytes of each row.
inline Interleaved interleaved(const uint8_t* const* rows, size_t offset, size_t bytes) {
  const __mmask64 used = ~uint64_t{0} >> (64 - bytes);
  __m512i row[4];
  for (size_t r = 0; r < 4; ++r) row[r] = _mm512_maskz_loadu_epi8(used, rows[r] + offset);
  const __m512i low_01 = _mm512_unpacklo_epi8(row[0], row[1]);
  const __m512i low_23 = _mm512_unpacklo_epi8(row[2], row[3]);
  const __m512i high_01 = _mm512_unpackhi_epi8(row[0], row[1]);
  const __m512i high_23 = _mm512_unpackhi_epi8(row[2], row[3]);
  return {{_mm512_unpacklo_epi16(low_01, low_23), _mm512_unpackhi_epi16(low_01, low_23),
           _mm512_unpacklo_epi16(high_01, high_23), _mm512_unpackhi_epi16(high_01, high_23)}};
}

// Vector q of `gathered` is quarter q of the four vectors in turn.
inline void gather_quarters(const __m512i* v, __m512i* gathered) {
  const __m512i low_01 = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i low_23 = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i high_01 = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i high_23 = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  gathered[0] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
  gathered[1] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
  gathered[2] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
  gathered[3] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
}

// The two integers of 4 bits of each number, one after the other within each quarter.
inline void zip_quarters(__m512i low, __m512i high, __m512i* v) {
  v[0] = _mm512_unpacklo_epi32(low, high);
  v[1] = _mm512_unpackhi_epi32(low, high);
}

// Sums<kBits> are those of one of the four interleaved vectors:
//
//   add(integers, activations)
//   bytes()        of 8 bits: the sums
//   low(), high()  of 4 bits: those of the low and of the high halves of bytes
template <template <size_t> class Sums, size_t kBits>
class Avx512Dot4Sums {
 public:
  static constexpr size_t kOutputs = 64 * 8 / kBits;
  static constexpr size_t kMostAdds = 16;

  void add(const uint8_t* const* rows, size_t offset, size_t bytes, uint32_t dot4, const uint32_t*) {
    const Interleaved four = interleaved(rows, offset, bytes);
    const __m512i activations = _mm512_set1_epi32(static_cast<int>(dot4));
    for (size_t i = 0; i < 4; ++i) sums_[i].add(four.at[i], activations);
  }

  void widen() {}

  void in_order(__m512i* v) const {
    if constexpr (kBits == 8) {
      const __m512i sums[4] = {sums_[0].bytes(), sums_[1].bytes(), sums_[2].bytes(), sums_[3].bytes()};
      gather_quarters(sums, v);
    } else {
      for (size_t h = 0; h < 2; ++h) {
        __m512i in_turn[4];
        for (size_t i = 0; i < 2; ++i) zip_quarters(sums_[h * 2 + i].low(), sums_[h * 2 + i].high(), in_turn + i * 2);
        __m512i gathered[4];
        gather_quarters(in_turn, gathered);
        for (size_t q = 0; q < 4; ++q) v[q * 2 + h] = gathered[q];
      }
    }
  }

 private:
  Sums<kBits> sums_[4];
};

// Products are added in pairs of 16 bits, which must not saturate: an integer of 8 bits is taken in two halves.
template <size_t kBits>
class Avx512PairSums {
 public:
  void add(__m512i integers, __m512i activations) {
    const __m512i mask = _mm512_set1_epi8(15);
    low_ = add_pairs(low_, _mm512_and_si512(integers, mask), activations);
    high_ = add_pairs(high_, _mm512_and_si512(_mm512_srli_epi16(integers, 4), mask), activations);
  }
  __m512i low() const { return low_; }
  __m512i high() const { return high_; }
  __m512i bytes() const { return _mm512_add_epi32(low_, _mm512_slli_epi32(high_, 4)); }

 private:
  static __m512i add_pairs(__m512i sums, __m512i halves, __m512i activations) {
    const __m512i pairs = _mm512_maddubs_epi16(halves, activations);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

  __m512i low_ = _mm512_setzero_si512();
  __m512i high_ = _mm512_setzero_si512();
};

}  // namespace
}  // namespace nm_export
