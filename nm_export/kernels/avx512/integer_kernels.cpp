// AVX-512 F, BW and DQ: products of bytes are added in pairs of 16 bits, which must not saturate.
#include "avx512/integer_dots.h"

namespace nm_export {
namespace {

struct Pairs {
  template <size_t kBits>
  static __m512i add(__m512i sums, __m512i codes, __m512i values) {
    const __m512i ones = _mm512_set1_epi16(1);
    if (kBits == 4) return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, values), ones));
    const __m512i top = _mm512_set1_epi8(-128);
    const __m512i low = _mm512_maddubs_epi16(_mm512_andnot_si512(top, codes), values);
    const __m512i high = _mm512_maddubs_epi16(_mm512_and_si512(top, codes), values);
    const __m512i both = _mm512_add_epi32(_mm512_madd_epi16(low, ones), _mm512_madd_epi16(high, ones));
    return _mm512_add_epi32(sums, both);
  }
};

template <size_t kBits, bool kSigned>
using Dots = Avx512Dots<Pairs, kBits, kSigned>;

}  // namespace

const IntegerKernels kAvx512Integers = integer_kernels<Dots>(nullptr);

}  // namespace nm_export
