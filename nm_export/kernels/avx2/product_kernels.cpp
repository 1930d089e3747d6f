// AVX2, FMA and F16C: eight lanes, tiles of 64 x 64 weights, which fill half of a first-level cache of 32 KiB.
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
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static uint32_t nonzero(Float v) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
  static void prefetch_far(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    return compact_one_by_one(v, channels, first, row, value);
  }
};

}  // namespace

const ProductKernels kAvx2Products = product_kernels<Avx2Products>();

}  // namespace nm_export
