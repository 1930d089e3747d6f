// Two vectors as one of twice the width, for products of an instruction set whose vectors are so short that more sums
// are needed at once to keep its multiply-add units busy. Only what is_product_vector of isa/vector_concept.h asks for.
#pragma once

#include "isa/vector_concept.h"

namespace nm_export {
namespace {

template <class V>
struct PairedVector {
  static constexpr size_t kWidth = 2 * V::kWidth;
  struct Float {
    typename V::Float low;
    typename V::Float high;
  };

  template <class Stored>
  static Float load(const Stored* source) {
    return {V::load(source), V::load(source + V::kWidth)};
  }
  template <class Stored>
  static float one(const Stored* source) {
    return V::one(source);
  }
  static void store(float* target, const Float& v) {
    V::store(target, v.low);
    V::store(target + V::kWidth, v.high);
  }
  static Float broadcast(float value) { return {V::broadcast(value), V::broadcast(value)}; }
  static void prefetch(const void* at) { V::prefetch(at); }
  static void prefetch_near(const void* at) { V::prefetch_near(at); }
  template <size_t kBits>
  static Float integers(const uint8_t* source) {
    return {V::template integers<kBits>(source), V::template integers<kBits>(source + V::kWidth * kBits / 8)};
  }

  static Float mul(const Float& a, const Float& b) { return {V::mul(a.low, b.low), V::mul(a.high, b.high)}; }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return {V::fma(a.low, b.low, c.low), V::fma(a.high, b.high, c.high)};
  }
  static uint32_t nonzero(const Float& v) { return V::nonzero(v.low) | V::nonzero(v.high) << V::kWidth; }

  static constexpr bool kCompresses = false;
};

}  // namespace
}  // namespace nm_export
