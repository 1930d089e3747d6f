// AVX-512 VNNI: one instruction for products of four bytes and their sum.
#include "avx512/integer_dots.h"

namespace nm_export {
namespace {

struct Vnni {
  template <size_t>
  static __m512i add(__m512i sums, __m512i codes, __m512i values) {
    return _mm512_dpbusd_epi32(sums, codes, values);
  }
};

template <size_t kBits, bool kSigned>
using Dots = Avx512Dots<Vnni, kBits, kSigned>;

}  // namespace

const IntegerKernels kAvx512VnniIntegers = integer_kernels<Dots>();

}  // namespace nm_export
