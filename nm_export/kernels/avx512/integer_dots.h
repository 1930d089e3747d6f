// AVX-512: sums of bytes in sixteen lanes, over a class `Products` that multiplies them.
#pragma once

#include <immintrin.h>

#include "avx512/rounding.h"

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

// (bytes ^ flip) & mask
inline __m512i low_bits(__m512i bytes, __m512i flip, __m512i mask) {
  return _mm512_ternarylogic_epi32(bytes, flip, mask, 0x28);
}

// Which block each number of 32 bits belongs to: a quarter is `quarter` columns long and begins with column `first`.
inline __m512i blocks_of(size_t quarter, size_t first, size_t block_size) {
  const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512i columns = _mm512_mullo_epi32(quarters, _mm512_set1_epi32(static_cast<int>(quarter)));
  const __m512i from_first = _mm512_add_epi32(columns, _mm512_set1_epi32(static_cast<int>(first)));
  // The quotient of small numbers by a power of two.
  const __m512 inverse = _mm512_set1_ps(1.0f / static_cast<float>(block_size));
  return _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(from_first), inverse));
}

inline __m512i of_blocks(const void* numbers, __m512i blocks) {
  return _mm512_permutexvar_epi32(blocks, _mm512_loadu_si512(numbers));
}

inline __m512 scaled(const RoundedValues& rounded, size_t block, __m512i blocks, __m512i sums) {
  const __m512 step = _mm512_castsi512_ps(of_blocks(rounded.step + block, blocks));
  return _mm512_mul_ps(step, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, of_blocks(rounded.zero + block, blocks))));
}

inline void add_to(float* y, __m512 sums) { _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), sums)); }

// Vector q of `turned` is quarter q of the four vectors in turn.
inline void turn_quarters(const __m512* v, __m512* turned) {
  const __m512 low_01 = _mm512_shuffle_f32x4(v[0], v[1], 0x44);
  const __m512 low_23 = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
  const __m512 high_01 = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 high_23 = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  turned[0] = _mm512_shuffle_f32x4(low_01, low_23, 0x88);
  turned[1] = _mm512_shuffle_f32x4(low_01, low_23, 0xdd);
  turned[2] = _mm512_shuffle_f32x4(high_01, high_23, 0x88);
  turned[3] = _mm512_shuffle_f32x4(high_01, high_23, 0xdd);
}

// Quarter q of the four vectors in turn are 16 columns from column q * quarter on.
inline void add_quarters(float* y, size_t quarter, const __m512* v) {
  __m512 turned[4];
  turn_quarters(v, turned);
  for (size_t q = 0; q < 4; ++q) add_to(y + quarter * q, turned[q]);
}

struct ToSecondLevel {
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
};

// Products::add<bits>(sums, codes, values) adds four neighbouring bytes of `codes`, without sign and of so many bits,
// times those of `values`, which have one, to each number of `sums`.
template <class Products, size_t kBits, bool kSigned>
struct Avx512Dots : ToSecondLevel {
  using Rounder = Avx512Rounder<kBits, kSigned>;
  static constexpr size_t kStep = 64;
  static constexpr bool kReadsParts = true;
  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t bytes, size_t quads, const RoundedValues& rounded,
                  size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    const __m512i flip = _mm512_set1_epi8(kSigned ? -128 : 0);
    const __m512i blocks = blocks_of(16, 0, block_size);
    __m512i sums[4] = {};
    for (size_t g = 0; g < quads; ++g) {
      next.step();
      const Columns columns = interleaved(rows + g * kQuad, offset, bytes);
      const __m512i values = of_blocks(rounded.quads[g] + block, blocks);
      for (size_t i = 0; i < 4; ++i) {
        sums[i] = Products::template add<8>(sums[i], _mm512_xor_si512(columns.at[i], flip), values);
      }
    }
    prefetch = next;
    __m512 v[4];
    for (size_t i = 0; i < 4; ++i) v[i] = scaled(rounded, block, blocks, sums[i]);
    add_quarters(y, 16, v);
  }
};

template <class Products, bool kSigned>
struct Avx512Dots<Products, 4, kSigned> : ToSecondLevel {
  using Rounder = Avx512Rounder<4, kSigned>;
  static constexpr size_t kStep = 128;
  static constexpr bool kReadsParts = true;
  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t bytes, size_t quads, const RoundedValues& rounded,
                  size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    const __m512i flip = _mm512_set1_epi8(kSigned ? 8 : 0);
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i blocks[2] = {blocks_of(32, 0, block_size), blocks_of(32, 16, block_size)};
    __m512i even[4] = {};
    __m512i odd[4] = {};
    for (size_t g = 0; g < quads; ++g) {
      next.step();
      const Columns pairs = interleaved(rows + g * kQuad, offset, bytes);
      for (size_t i = 0; i < 4; ++i) {
        const __m512i values = of_blocks(rounded.quads[g] + block, blocks[i / 2]);
        even[i] = Products::template add<4>(even[i], low_bits(pairs.at[i], flip, mask), values);
        odd[i] = Products::template add<4>(odd[i], low_bits(_mm512_srli_epi16(pairs.at[i], 4), flip, mask), values);
      }
    }
    prefetch = next;
    for (size_t h = 0; h < 2; ++h) {
      __m512 v[4];
      for (size_t i = 0; i < 2; ++i) {
        const __m512 low = scaled(rounded, block, blocks[h], even[h * 2 + i]);
        const __m512 high = scaled(rounded, block, blocks[h], odd[h * 2 + i]);
        v[i * 2] = _mm512_unpacklo_ps(low, high);
        v[i * 2 + 1] = _mm512_unpackhi_ps(low, high);
      }
      add_quarters(y + h * 16, 32, v);
    }
  }
};

}  // namespace
}  // namespace nm_export
