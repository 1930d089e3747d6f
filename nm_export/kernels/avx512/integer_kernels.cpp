// AVX-512 F, BW and DQ: products of bytes are added in pairs of 16 bits, which must not saturate.
#include "avx512/integer_dots.h"

namespace nm_export {
namespace {

__m512i add_pairs(__m512i sums, __m512i codes, __m512i values) {
  const __m512i pairs = _mm512_maddubs_epi16(codes, values);
  return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

struct Pairs {
  // A code of 8 bits is taken in two halves.
  template <size_t kBits>
  struct Sums {
    __m512i low_halves = _mm512_setzero_si512();
    __m512i high_halves = _mm512_setzero_si512();

    void add(__m512i codes, __m512i values) {
      const __m512i mask = _mm512_set1_epi8(15);
      low_halves = add_pairs(low_halves, _mm512_and_si512(codes, mask), values);
      high_halves = add_pairs(high_halves, _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask), values);
    }
    __m512i low() const { return low_halves; }
    __m512i high() const { return high_halves; }
    __m512i codes() const { return _mm512_add_epi32(low_halves, _mm512_slli_epi32(high_halves, 4)); }
  };
};

template <size_t kBits>
using Dots = Avx512Dots<Pairs, kBits>;

}  // namespace

const IntegerKernels kAvx512Integers = integer_kernels<Dots>(nullptr);

}  // namespace nm_export
