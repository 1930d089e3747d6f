// AVX-512 with VNNI as isa/vector_concept.h wants it: one instruction for products of four bytes and their sum.
#pragma once

#include "isa/avx512/vector.h"

namespace nm_export {
namespace {

struct Avx512VnniVector : Avx512Vector {
  template <size_t>
  static Int dot4(Int sums, Int weights, Int activations) {
    return _mm512_dpbusd_epi32(sums, weights, activations);
  }
};

}  // namespace
}  // namespace nm_export
