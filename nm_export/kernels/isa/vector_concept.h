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
//   kConvertsBytes   widens integers of 8 bits
//     load_bytes<kSigned>(p)     Int of kWidth bytes
//     to_float(i)                exact for |i| <= 2^24
//     low_four<kSigned>(i), high_four<kSigned>(i)   bits 0 to 3, and 4 to 7, of what load_bytes<kSigned> gave
//     zip(even, odd, low, high)  low and high = even[0], odd[0], even[1], odd[1], ...; of Floats, as bits
//     unzip(low, high, even, odd)   the reverse
//
//   kDots4           multiplies bytes. A dot4 group is four neighbouring bytes of an Int; four numbers are a part (128
//                    bits)
//     kLoadsFewBytes             whether load_quantized reads no more bytes than it is asked for
//     load_quantized(p, bytes)   4 * kWidth bytes; those beyond `bytes` are 0 if kLoadsFewBytes, else they are read too
//     xor_int(a, b)
//     kFlipsNibbles              whether flipping bits of nibbles on the way costs nothing
//     nibbles(v, flip)           (v ^ flip) & 15 of each byte if kFlipsNibbles, else v & 15
//     high_nibbles(v, flip)      the same for the upper four bits of each byte
//     interleave(rows, v)        four Ints of bytes to four: number 4 q + j of v[i] holds byte 16 q + 4 i + j of all
//                                four rows, the first row's lowest
//     dot4<kBits>(sums, w, a)    sums + the dot products of dot4 groups of unsigned weights of kBits bits with signed
//                                activations from -127 to 127; exact
//     blocks_of(length, first, size)   number j of part q is (first + q * length) / size, of a power of two `size`
//     look_up(p, i)              lane = p[i] for 0 <= i < kWidth, of kWidth numbers of 32 bits
//     to_float(i)                to nearest
//     bits_to_float(i)           the Float whose bits these are
//     zip_parts(a, b, low, high) zip within each part: low = a[0], b[0], a[1], b[1], high = a[2], b[2], a[3], b[3]
//     add_parts(y, stride, v)    y[q * stride + 4 i + j] += number j of part q of v[i], i < 4
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
  v = V::mul(v, V::broadcast(number));
  v = V::fma(v, v, v);
  uint32_t bits = V::nonzero(v);
  static_assert(V::kWidth == 4 || V::kWidth == 8 || V::kWidth == 16, "kWidth");
  static_assert(!V::kConvertsBytes || V::kWidth >= 8, "kConvertsBytes");
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
