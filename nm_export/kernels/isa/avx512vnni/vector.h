// AVX-512 with VNNI as isa/vector_concept.h wants it: one instruction for products of four bytes and their sum.
#pragma once

#include "isa/avx512/vector.h"

namespace nm_export {
namespace {

template <size_t kBits>
class Avx512VnniSums {
 public:
  void add(__m512i integers, __m512i activations) { sums_ = _mm512_dpbusd_epi32(sums_, integers, activations); }
  __m512i bytes() const { return sums_; }

 private:
  __m512i sums_ = _mm512_setzero_si512();
};

// The bytes as they are hold 16 times the high halves and once the low ones: so that no byte need be shifted.
template <>
class Avx512VnniSums<4> {
 public:
  void add(__m512i integers, __m512i activations) {
    bytes_ = _mm512_dpbusd_epi32(bytes_, integers, activations);
    low_ = _mm512_dpbusd_epi32(low_, _mm512_and_si512(integers, _mm512_set1_epi8(15)), activations);
  }
  __m512i low() const { return low_; }
  __m512i high() const { return _mm512_srai_epi32(_mm512_sub_epi32(bytes_, low_), 4); }

 private:
  __m512i bytes_ = _mm512_setzero_si512();
  __m512i low_ = _mm512_setzero_si512();
};

struct Avx512VnniVector : Avx512Vector {
  template <size_t kBits>
  using Dot4Sums = Avx512Dot4Sums<Avx512VnniSums, kBits>;
};

}  // namespace
}  // namespace nm_export
