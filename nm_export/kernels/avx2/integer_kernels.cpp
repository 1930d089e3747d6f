// AVX2: products of bytes are added in pairs of 16 bits, which must not saturate.
#include <immintrin.h>

#include "integer_kernels_impl.h"

namespace nm_export {
namespace {

// The sums of four neighbouring bytes without sign, times those of `values`, which have one.
template <size_t kBits>
__m256i add_products(__m256i sums, __m256i codes, __m256i values) {
  const __m256i ones = _mm256_set1_epi16(1);
  if (kBits == 4) return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, values), ones));
  const __m256i top = _mm256_set1_epi8(-128);
  const __m256i low = _mm256_maddubs_epi16(_mm256_andnot_si256(top, codes), values);
  const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(top, codes), values);
  const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
  return _mm256_add_epi32(sums, both);
}

// Four rows, of which every number of 32 bits holds the four bytes of a column (of two columns of 4 bits).
struct Columns {
  __m256i at[4];
};

Columns interleaved(const uint8_t* const* rows, size_t offset, int flipped) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(flipped));
  __m256i row[4];
  for (size_t i = 0; i < 4; ++i) {
    row[i] = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + offset)), flip);
  }
  const __m256i low_01 = _mm256_unpacklo_epi8(row[0], row[1]);
  const __m256i low_23 = _mm256_unpacklo_epi8(row[2], row[3]);
  const __m256i high_01 = _mm256_unpackhi_epi8(row[0], row[1]);
  const __m256i high_23 = _mm256_unpackhi_epi8(row[2], row[3]);
  return {{_mm256_unpacklo_epi16(low_01, low_23), _mm256_unpackhi_epi16(low_01, low_23),
           _mm256_unpacklo_epi16(high_01, high_23), _mm256_unpackhi_epi16(high_01, high_23)}};
}

// Which block each number of 32 bits belongs to: the two halves are `half` columns long and begin with column `first`.
__m256i blocks_of(size_t half, size_t first, size_t block_size) {
  const auto low = static_cast<int>(first / block_size);
  const auto high = static_cast<int>((half + first) / block_size);
  return _mm256_setr_epi32(low, low, low, low, high, high, high, high);
}

__m256i of_blocks(const void* numbers, __m256i blocks) {
  return _mm256_permutevar8x32_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(numbers)), blocks);
}

__m256 scaled(const RoundedValues& rounded, size_t block, __m256i blocks, __m256i sums) {
  const __m256 step = _mm256_castsi256_ps(of_blocks(rounded.step + block, blocks));
  return _mm256_mul_ps(step, _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, of_blocks(rounded.zero + block, blocks))));
}

void add_to(float* y, __m256 sums) { _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), sums)); }

// To 16 columns from `columns` and 16 from `columns` + `half` on: numbers of which `low` holds 0 to 3, and so on.
void add_halves(float* y, size_t half, const __m256* v) {
  for (size_t i = 0; i < 4; i += 2) {
    add_to(y + i * 4, _mm256_permute2f128_ps(v[i], v[i + 1], 0x20));
    add_to(y + half + i * 4, _mm256_permute2f128_ps(v[i], v[i + 1], 0x31));
  }
}

template <size_t kBits, bool kSigned>
struct Avx2Dots {
  using Rounder = nm_export::Rounder<kBits, kSigned>;
  static constexpr size_t kStep = 32;
  static constexpr bool kReadsParts = false;
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t, size_t quads, const RoundedValues& rounded,
                  size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    const __m256i blocks = blocks_of(16, 0, block_size);
    __m256i sums[4] = {};
    for (size_t g = 0; g < quads; ++g) {
      next.step();
      const Columns columns = interleaved(rows + g * kQuad, offset, kSigned ? 0x80 : 0);
      const __m256i values = of_blocks(rounded.quads[g] + block, blocks);
      for (size_t i = 0; i < 4; ++i) sums[i] = add_products<8>(sums[i], columns.at[i], values);
    }
    prefetch = next;
    __m256 v[4];
    for (size_t i = 0; i < 4; ++i) v[i] = scaled(rounded, block, blocks, sums[i]);
    add_halves(y, 16, v);
  }
};

template <bool kSigned>
struct Avx2Dots<4, kSigned> {
  using Rounder = nm_export::Rounder<4, kSigned>;
  static constexpr size_t kStep = 64;
  static constexpr bool kReadsParts = false;
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t, size_t quads, const RoundedValues& rounded,
                  size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i blocks[2] = {blocks_of(32, 0, block_size), blocks_of(32, 16, block_size)};
    __m256i even[4] = {};
    __m256i odd[4] = {};
    for (size_t g = 0; g < quads; ++g) {
      next.step();
      const Columns pairs = interleaved(rows + g * kQuad, offset, kSigned ? 0x88 : 0);
      for (size_t i = 0; i < 4; ++i) {
        const __m256i values = of_blocks(rounded.quads[g] + block, blocks[i / 2]);
        even[i] = add_products<4>(even[i], _mm256_and_si256(pairs.at[i], mask), values);
        odd[i] = add_products<4>(odd[i], _mm256_and_si256(_mm256_srli_epi16(pairs.at[i], 4), mask), values);
      }
    }
    prefetch = next;
    for (size_t h = 0; h < 2; ++h) {
      __m256 v[4];
      for (size_t i = 0; i < 2; ++i) {
        const __m256 low = scaled(rounded, block, blocks[h], even[h * 2 + i]);
        const __m256 high = scaled(rounded, block, blocks[h], odd[h * 2 + i]);
        v[i * 2] = _mm256_unpacklo_ps(low, high);
        v[i * 2 + 1] = _mm256_unpackhi_ps(low, high);
      }
      add_halves(y + h * 16, 32, v);
    }
  }
};

}  // namespace

const IntegerKernels kAvx2Integers = integer_kernels<Avx2Dots>(nullptr);

}  // namespace nm_export
