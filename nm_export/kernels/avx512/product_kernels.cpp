// AVX-512 F, BW and DQ: sixteen lanes, tiles of 64 x 128 weights: two thirds of a first-level cache of 48 KiB.
#include <immintrin.h>

#include "avx2/product_lanes.h"
#include "product_kernels_impl.h"

namespace nm_export {
namespace {

struct Avx512Products {
  static constexpr size_t kWidth = 16;
  using Float = __m512;

  static Float load(const float* source) { return _mm512_loadu_ps(source); }
  static Float load(const Float16* source) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  static Float load(const BFloat16* source) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { _mm512_storeu_ps(target, v); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static uint32_t nonzero(Float v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint64_t mask = 0;
    size_t count = 0;
    size_t i = 0;
    for (; i + kWidth <= channels; i += kWidth) {
      const Float lanes = load(v + i);
      const auto kept = static_cast<__mmask16>(nonzero(lanes));
      const __m512i number = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(first + i)));
      _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(kept, lanes));
      _mm512_storeu_si512(row + count, _mm512_maskz_compress_epi32(kept, number));
      count += static_cast<size_t>(_mm_popcnt_u32(kept));
      mask |= static_cast<uint64_t>(kept) << i;
    }
    if (i == channels) return mask;
    return mask | compact_one_by_one(v + i, channels - i, first + i, row + count, value + count) << i;
  }
};

struct Avx512Codes {
  template <size_t bits, bool is_signed, bool has_zero_points>
  struct Adder : CodeFormat<bits, is_signed, has_zero_points> {
    static constexpr size_t kStep = 16;
    using Narrow = Adder;
    using Sums = __m512;
    using Row = __m512;
    struct Block {
      __m512 factor;
      __m512i zero_point;
    };

    static Sums zeros() { return _mm512_setzero_ps(); }
    static Sums load(const float* y) { return _mm512_loadu_ps(y); }
    static void store(float* y, Sums sums) { _mm512_storeu_ps(y, sums); }
    static Row row(float value) { return _mm512_set1_ps(value); }
    static Block block(Row row, float scale, int zero_point) {
      return {_mm512_mul_ps(row, _mm512_set1_ps(scale)), _mm512_set1_epi32(zero_point)};
    }
    static Sums add(const Block& block, const uint8_t* codes, Sums sums) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
      __m512i integers = is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
      if (has_zero_points) integers = _mm512_sub_epi32(integers, block.zero_point);
      return _mm512_fmadd_ps(block.factor, _mm512_cvtepi32_ps(integers), sums);
    }
  };

  // The products of the sixteen codes are looked up: a permutation looks at the low four bits of its indices only. The
  // sums of even and of odd columns are apart, as low and high halves of bytes come.
  template <bool is_signed, bool has_zero_points>
  struct Adder<4, is_signed, has_zero_points> : CodeFormat<4, is_signed, has_zero_points> {
    static constexpr size_t kStep = 32;
    using Narrow = Avx2Codes::Adder<4, is_signed, has_zero_points>;
    struct Sums {
      __m512 even;
      __m512 odd;
    };
    using Row = __m512;
    using Block = __m512;

    static Sums zeros() { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }
    static Sums load(const float* y) {
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
      const __m512 low = _mm512_loadu_ps(y);
      const __m512 high = _mm512_loadu_ps(y + 16);
      return {_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)};
    }
    static void store(float* y, const Sums& sums) {
      const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      _mm512_storeu_ps(y, _mm512_permutex2var_ps(sums.even, low, sums.odd));
      _mm512_storeu_ps(y + 16, _mm512_permutex2var_ps(sums.even, high, sums.odd));
    }
    static Row row(float value) {
      const __m512 broadcast = _mm512_set1_ps(value);
      return has_zero_points ? broadcast : _mm512_mul_ps(broadcast, codes_in_order());
    }
    static Block block(Row row, float scale, int zero_point) {
      const __m512 scaled = _mm512_mul_ps(row, _mm512_set1_ps(scale));
      if (!has_zero_points) return scaled;
      const __m512 shift = _mm512_set1_ps(static_cast<float>(zero_point));
      return _mm512_mul_ps(_mm512_sub_ps(codes_in_order(), shift), scaled);
    }
    static Sums add(Block products, const uint8_t* codes, const Sums& sums) {
      const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      return {_mm512_add_ps(sums.even, _mm512_permutexvar_ps(pairs, products)),
              _mm512_add_ps(sums.odd, _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), products))};
    }

   private:
    // What the bits 0 to 15 mean.
    static __m512 codes_in_order() {
      return is_signed ? _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                       : _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
  };
};

}  // namespace

const ProductKernels kAvx512Products = product_kernels<Avx512Products, Avx512Codes>();

}  // namespace nm_export
