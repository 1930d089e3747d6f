// AVX2, FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include "product_kernels_impl.h"

namespace nm_export {
namespace {

struct Avx2Products {
  static constexpr size_t kWidth = 8;
  using Float = __m256;

  static Float load(const float* source) { return _mm256_loadu_ps(source); }
  static Float load(const Float16* source) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
  static Float load(const BFloat16* source) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { _mm256_storeu_ps(target, v); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static uint32_t nonzero(Float v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    return compact_one_by_one(v, channels, first, row, value);
  }
};

struct Avx2Codes {
  template <size_t bits, bool is_signed, bool has_zero_points>
  struct Adder : CodeFormat<bits, is_signed, has_zero_points> {
    static constexpr size_t kStep = 8;
    using Narrow = Adder;
    using Sums = __m256;
    using Row = __m256;
    struct Block {
      __m256 factor;
      __m256i zero_point;
    };

    static Sums zeros() { return _mm256_setzero_ps(); }
    static Sums load(const float* y) { return _mm256_loadu_ps(y); }
    static void store(float* y, Sums sums) { _mm256_storeu_ps(y, sums); }
    static Row row(float value) { return _mm256_set1_ps(value); }
    static Block block(Row row, float scale, int zero_point) {
      return {_mm256_mul_ps(row, _mm256_set1_ps(scale)), _mm256_set1_epi32(zero_point)};
    }
    static Sums add(const Block& block, const uint8_t* codes, Sums sums) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
      return add(block, is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes), sums);
    }
    static Sums add(const Block& block, __m256i integers, Sums sums) {
      if (has_zero_points) integers = _mm256_sub_epi32(integers, block.zero_point);
      return _mm256_fmadd_ps(block.factor, _mm256_cvtepi32_ps(integers), sums);
    }
  };

  // The sums of even and of odd columns, as low and high halves of bytes come.
  template <bool is_signed, bool has_zero_points>
  struct Adder<4, is_signed, has_zero_points> : CodeFormat<4, is_signed, has_zero_points> {
    using Integers = Adder<8, is_signed, has_zero_points>;
    static constexpr size_t kStep = 16;
    using Narrow = Adder;
    struct Sums {
      __m256 even;
      __m256 odd;
    };
    using Row = typename Integers::Row;
    using Block = typename Integers::Block;

    static Sums zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Sums load(const float* y) {
      const __m256 low = _mm256_loadu_ps(y);
      const __m256 high = _mm256_loadu_ps(y + 8);
      return {in_order(_mm256_shuffle_ps(low, high, 0x88)), in_order(_mm256_shuffle_ps(low, high, 0xdd))};
    }
    static void store(float* y, const Sums& sums) {
      const __m256 low = _mm256_unpacklo_ps(sums.even, sums.odd);
      const __m256 high = _mm256_unpackhi_ps(sums.even, sums.odd);
      _mm256_storeu_ps(y, _mm256_permute2f128_ps(low, high, 0x20));
      _mm256_storeu_ps(y + 8, _mm256_permute2f128_ps(low, high, 0x31));
    }
    static Row row(float value) { return Integers::row(value); }
    static Block block(Row row, float scale, int zero_point) { return Integers::block(row, scale, zero_point); }
    static Sums add(const Block& block, const uint8_t* codes, const Sums& sums) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
      __m256i even, odd;
      if (is_signed) {
        const __m256i pairs = _mm256_cvtepi8_epi32(bytes);
        even = _mm256_srai_epi32(_mm256_slli_epi32(pairs, 28), 28);
        odd = _mm256_srai_epi32(pairs, 4);
      } else {
        const __m256i pairs = _mm256_cvtepu8_epi32(bytes);
        even = _mm256_and_si256(pairs, _mm256_set1_epi32(15));
        odd = _mm256_srli_epi32(pairs, 4);
      }
      return {Integers::add(block, even, sums.even), Integers::add(block, odd, sums.odd)};
    }

   private:
    // Exchanges the middle quarters: shuffles of 256 bits work within halves.
    static __m256 in_order(__m256 v) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
    }
  };
};

}  // namespace
}  // namespace nm_export
