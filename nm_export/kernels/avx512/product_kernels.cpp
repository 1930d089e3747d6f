// AVX-512 F, BW and DQ: sixteen lanes, tiles of 64 x 128 weights: two thirds of a first-level cache of 48 KiB.
#include <immintrin.h>
#include <string.h>

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

  // Eight codes of 4 bits are one number of 32, from which every lane takes its own.
  template <size_t kBits>
  static Float codes(const uint8_t* bytes) {
    if (kBits == 8) {
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
    }
    int32_t halves[2];
    memcpy(halves, bytes, sizeof halves);
    const __m512i all = _mm512_inserti64x4(_mm512_set1_epi32(halves[0]), _mm256_set1_epi32(halves[1]), 1);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(all, shifts), _mm512_set1_epi32(15)));
  }

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

}  // namespace

const ProductKernels kAvx512Products = product_kernels<Avx512Products>();

}  // namespace nm_export
