// AVX-512: weights of 4 bits by tables of their sixteen products. See product/quantized_kernels_impl.h.
#pragma once

#include "isa/avx2/vector.h"
#include "isa/avx512/vector.h"
#include "product/quantized_kernels_impl.h"

namespace nm_export {
namespace {

// A permutation looks at the low four bits of its indices only. The sums of even and of odd outputs are apart, as low
// and high halves of bytes come.
template <bool is_signed, bool has_zero_points>
struct LookupAdder : QuantizedFormat<4, is_signed, has_zero_points> {
  using V = Avx512Vector;
  static constexpr size_t kStep = 2 * V::kWidth;
  using Narrow = VectorAdder<Avx2Vector, 4, is_signed, has_zero_points>;
  using Sums = typename VectorAdder<V, 4, is_signed, has_zero_points>::Sums;
  using Row = V::Float;
  using Block = V::Float;

  static Sums zeros() { return VectorAdder<V, 4, is_signed, has_zero_points>::zeros(); }
  static Sums load(const float* y) { return VectorAdder<V, 4, is_signed, has_zero_points>::load(y); }
  static void store(float* y, const Sums& sums) { VectorAdder<V, 4, is_signed, has_zero_points>::store(y, sums); }
  static Row row(float value) {
    const V::Float factor = V::broadcast(value);
    return has_zero_points ? factor : V::mul(factor, integers_in_order());
  }
  static Block block(Row row, float scale, int zero_point) {
    const V::Float scaled = V::mul(row, V::broadcast(scale));
    if (!has_zero_points) return scaled;
    const V::Float shift = V::broadcast(static_cast<float>(zero_point));
    return V::mul(V::sub(integers_in_order(), shift), scaled);
  }
  static Sums add(Block products, const uint8_t* weights, const Sums& sums) {
    const V::Int pairs = V::load_bytes<false>(weights);
    return {V::add(sums.even, _mm512_permutexvar_ps(pairs, products)),
            V::add(sums.odd, _mm512_permutexvar_ps(V::high_four<false>(pairs), products))};
  }

 private:
  // What the bits 0 to 15 mean.
  static V::Float integers_in_order() {
    return is_signed ? _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                     : _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
};

template <size_t bits, bool is_signed, bool has_zero_points>
struct ChosenAdder {
  using Type = VectorAdder<Avx512Vector, bits, is_signed, has_zero_points>;
};
template <bool is_signed, bool has_zero_points>
struct ChosenAdder<4, is_signed, has_zero_points> {
  using Type = LookupAdder<is_signed, has_zero_points>;
};

struct Avx512Adders {
  template <size_t bits, bool is_signed, bool has_zero_points>
  using Adder = typename ChosenAdder<bits, is_signed, has_zero_points>::Type;
};

}  // namespace
}  // namespace nm_export
