// The vector vocabulary: what a class V offers, so that the kernels of selection, of float products and of int8
// products can be written once over it. Every instruction set has one such class, in isa/<name>/vector.h.
//
// For authors of an instruction set and of kernels. Functions are static. They are told apart by name and not by vector
// type, since some compilers have one type for several of ours. Kernels guarantee that memory is as large as a function
// says, and no alignment. Everything is in an unnamed namespace: each instruction set is compiled with flags of its
// own, and the linker must not take its code for another's. For the same reason these files call no inline function of
// the C++ library.
//
// tests/vector_test.cpp holds every instruction set to what is said here.
//
//   kWidth           numbers of a Float and of an Int; 4, 8 or 16
//   Float            kWidth numbers of float32
//   Int              kWidth numbers of int32
//   Mask             kWidth truth values, in whatever form comparisons give and take them
//
// Memory
//   load(p)          kWidth numbers, of float, or of Float16 or BFloat16 widened exactly (a NaN stays a NaN)
//   one(p)           the same for one number
//   store(p, v)      as bits: -0 and every NaN arrive as they are
//   store_float16(p, v)  rounded to nearest, ties to even; |v| >= 65520 becomes infinity, a NaN a quiet NaN of any sign
//   load_int(p), store_int(p, v)
//   broadcast(x), broadcast_int(i)
//   prefetch(p)      asks for the cache line in the second-level cache, or does nothing; p need not be readable
//   prefetch_near(p) the same for the first-level cache
//   integers<kBits>(p)   kWidth integers without sign of kBits bits (8 or 4) as a Float; of 4 bits two share a byte,
//                    the first has the low bits. Reads no other bytes
//
// Arithmetic of Float: IEEE, to nearest, subnormals kept. A NaN of an operand gives a NaN; which one is not said.
//   add(a, b), sub(a, b), mul(a, b)
//   fma(a, b, c)     a * b + c, rounded once or twice (where the product underflows, the sign of a zero may differ);
//   the
//                    same in every lane
//   any_nan(v)       bool
//   less(a, b)       Mask; false where either is NaN; -0 is not less than +0
//   nonzero(v)       bits, bit i for lane i: v is not zero; false for -0, true for NaN
//   where(bits, v)   lane i of v, as bits, where bit i is set, else +0; bits beyond kWidth are ignored
//
// Scores (selection/score_key.h)
//   key(z, score)    |z| * score as an Int of the same order: +0 for a zero, kNanKey for every NaN. score >= 0 or NaN
//
// Arithmetic of Int: modulo 2^32.
//   add_int(a, b), sub_int(a, b), max_int(a, b), min_int(a, b)
//   greater(a, b), equal(a, b)   Mask
//   both(m, n)                   Mask
//   or_unless(m, v, bit)         v | bit where m is false, else v
//   clear_where(m, v, bit)       v & ~bit where m is true, else v
//   increment_where(m, v), increment_unless(m, v), decrement_where(m, v)   v, or v + 1, v + 1, v - 1
//   any_positive(v)              bool
//
// Groups of a selection
//   load_channel(p, m)           lane g = p[g * m]
//   load_four_channels(p, m, c)  c[i] = load_channel(p + i, m) for i < 4; reads 4 numbers from each p + g * m
//
// Float64
//   kDoubles         numbers of a Double; divides kWidth
//   widen(p)         kDoubles numbers of float32, exactly
//   store_double(p, v), broadcast_double(x), add_double(a, b), sub_double(a, b), mul_double(a, b)   IEEE, as above
//
// What only some instruction sets have. Where the constant is false the functions are not asked for.
//
//   kComparesToBits  comparisons give bits, so that keys need not be transposed back
//     at_least(a, b)             bits, of Ints: a >= b
//     count_bits(word)           int, of 64 bits
//     of_groups<kM>(p, v)        lane i = p[(v * kWidth + i) / kM], of kWidth numbers p; kM is 4, 8, 16 or 32
//
//   kCompresses      moves chosen lanes together
//     count_bits(word)
//     at_least_and_below(v, a, b)   bits: v >= a and not v >= b (false, and true, where a NaN is compared)
//     compress(bits, v), compress_int(bits, v)   the lanes whose bit is set, in order, then +0
//     first_integers()              0, 1, 2, ... of an Int
//
//   kDots4           multiplies bytes
//     to_float(i)                to nearest
//     kLoadsFew                  whether fewer than kWidth numbers are loaded and stored without touching others
//     load_few(p, count)         of float or Float16; other lanes are +0. count <= kWidth
//     store_few(p, count, v)
//     Dot4Sums<kBits>            sums of products of bytes, a dot4 at a time: four rows of integers without sign of
//                                kBits bits, times four activations from -127 to 127. An object begins with zeros; sums
//                                are exact
//       kOutputs                 so many sums, a multiple of kWidth
//       kMostAdds                so many calls of `add` may come before one of `widen`
//       add(rows, offset, bytes, dot4, pairs)   adds the integers from rows[r] + offset on, times activation r, r < 4.
//                                The bytes of `dot4` are the activations; pairs[0] has the first two of them twice, and
//                                pairs[1] the others. Reads `bytes` bytes of a row if kLoadsFew, others count as 0;
//                                else it reads all kOutputs * kBits / 8
//       widen()
//       in_order(v)              sum i of output i, to kOutputs / kWidth Ints; after `widen`
#pragma once

#include <cstddef>
#include <cstdint>

#include "element_types.h"

namespace nm_export {
namespace {

// Compile where V has what the kernels of products, and of selection too, need. They are not run: a deduced type makes
// the compiler look at the whole function where it is named in is_product_vector and is_selection_vector.
template <class V>
auto use_product_vector(const float* p, const Float16* half, const BFloat16* bfloat, float* target) {
  typename V::Float v = V::load(p);
  v = V::load(half);
  v = V::load(bfloat);
  float number = V::one(p);
  number = V::one(half);
  number = V::one(bfloat);
  V::store(target, v);
  V::prefetch(p);
  V::prefetch_near(p);
  v = V::template integers<8>(nullptr);
  v = V::template integers<4>(nullptr);
  v = V::mul(v, V::broadcast(number));
  v = V::fma(v, v, v);
  uint32_t bits = V::nonzero(v);
  static_assert(V::kWidth == 4 || V::kWidth == 8 || V::kWidth == 16, "kWidth");
  static_assert(!V::kCompresses || V::kWidth >= 8, "kCompresses");
  return bits != 0;
}

template <class V>
auto use_selection_vector(const float* p, const int32_t* q, int32_t* keys, Float16* half, double* numbers) {
  typename V::Float v = V::sub(V::load(p), V::broadcast(0.0f));
  v = V::add(v, v);
  v = V::where(0u, v);
  V::store_float16(half, v);
  typename V::Mask mask = V::less(v, v);
  typename V::Int i = V::load_int(q);
  i = V::key(v, v);
  i = V::max_int(V::min_int(i, V::broadcast_int(0)), V::load_channel(q, 1));
  i = V::add_int(i, V::sub_int(i, i));
  mask = V::both(V::greater(i, i), V::equal(i, i));
  i = V::or_unless(mask, i, i);
  i = V::clear_where(mask, i, i);
  i = V::increment_where(mask, V::increment_unless(mask, V::decrement_where(mask, i)));
  typename V::Int four[4];
  V::load_four_channels(q, 4, four);
  V::store_int(keys, four[0]);
  typename V::Double d = V::widen(p);
  d = V::add_double(d, V::sub_double(d, V::mul_double(d, V::broadcast_double(0))));
  V::store_double(numbers, d);
  static_assert(V::kWidth % V::kDoubles == 0, "kDoubles");
  static_assert(V::kComparesToBits || !V::kComparesToBits, "kComparesToBits");
  static_assert(V::kDots4 || !V::kDots4, "kDots4");
  return V::any_nan(v) || V::any_positive(i);
}

template <class V>
constexpr bool is_product_vector() {
  return sizeof(use_product_vector<V>(nullptr, nullptr, nullptr, nullptr)) == sizeof(bool);
}

template <class V>
constexpr bool is_selection_vector() {
  return is_product_vector<V>() &&
         sizeof(use_selection_vector<V>(nullptr, nullptr, nullptr, nullptr, nullptr)) == sizeof(bool);
}

}  // namespace
}  // namespace nm_export
