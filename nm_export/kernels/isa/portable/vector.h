// Plain C++ as isa/vector_concept.h wants it, in loops of eight, which compilers turn into whatever vectors the target
// has by default.
#pragma once

#include "isa/portable/float16.h"
#include "isa/vector_concept.h"
#include "selection/score_key.h"

namespace nm_export {
namespace {

struct PortableVector {
  static constexpr size_t kWidth = 8;
  struct Float {
    float at[kWidth];
  };
  struct Int {
    int32_t at[kWidth];
  };
  using Mask = Int;  // -1 where true, 0 where false

  template <class Operation>
  static Float each(Operation operation) {
    Float result;
    for (size_t i = 0; i < kWidth; ++i) result.at[i] = operation(i);
    return result;
  }
  template <class Operation>
  static Int each_int(Operation operation) {
    Int result;
    for (int i = 0; i < static_cast<int>(kWidth); ++i) result.at[i] = operation(i);
    return result;
  }

  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return widened(*source); }
  static float one(const BFloat16* source) { return widened(*source); }
  template <class Stored>
  static Float load(const Stored* source) {
    return each([=](size_t i) { return one(source + i); });
  }
  static void store(float* target, const Float& v) {
    for (size_t i = 0; i < kWidth; ++i) target[i] = v.at[i];
  }
  static void store_float16(Float16* target, const Float& v) {
    for (size_t i = 0; i < kWidth; ++i) target[i].bits = float16_bits(v.at[i]);
  }
  static Int load_int(const int32_t* source) {
    return each_int([=](int i) { return source[i]; });
  }
  static void store_int(int32_t* target, const Int& v) {
    for (size_t i = 0; i < kWidth; ++i) target[i] = v.at[i];
  }
  static Float broadcast(float value) {
    return each([=](size_t) { return value; });
  }
  static Int broadcast_int(int32_t value) {
    return each_int([=](int) { return value; });
  }
  static void prefetch(const void*) {}
  static void prefetch_near(const void* at) {
#ifdef __GNUC__
    __builtin_prefetch(at);
#else
    static_cast<void>(at);
#endif
  }
  template <size_t kBits>
  static Float integers(const uint8_t* source) {
    return each([=](size_t i) { return static_cast<float>(integer<kBits>(source, i)); });
  }

  static Float add(const Float& a, const Float& b) {
    return each([&](size_t i) { return a.at[i] + b.at[i]; });
  }
  static Float sub(const Float& a, const Float& b) {
    return each([&](size_t i) { return a.at[i] - b.at[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return each([&](size_t i) { return a.at[i] * b.at[i]; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each([&](size_t i) { return a.at[i] * b.at[i] + c.at[i]; });
  }
  static bool any_nan(const Float& v) {
    bool any = false;
    for (size_t i = 0; i < kWidth; ++i) any |= v.at[i] != v.at[i];
    return any;
  }
  static Mask less(const Float& a, const Float& b) {
    return each_int([&](int i) { return -static_cast<int32_t>(a.at[i] < b.at[i]); });
  }
  static uint32_t nonzero(const Float& v) {
    uint32_t bits = 0;
    for (size_t i = 0; i < kWidth; ++i) bits |= (v.at[i] != 0 ? 1u : 0u) << i;
    return bits;
  }
  // Without a branch, which would be mispredicted often.
  static Float where(uint32_t bits, const Float& v) {
    return each([&](size_t i) { return float_of(static_cast<uint32_t>(bits_of(v.at[i])) & (0u - (bits >> i & 1u))); });
  }

  static Int key(const Float& z, const Float& score) {
    return each_int([&](int i) { return key_of(z.at[i], score.at[i]); });
  }

  static Int add_int(const Int& a, const Int& b) {
    return each_int([&](int i) { return wrapped(unsigned_of(a.at[i]) + unsigned_of(b.at[i])); });
  }
  static Int sub_int(const Int& a, const Int& b) {
    return each_int([&](int i) { return wrapped(unsigned_of(a.at[i]) - unsigned_of(b.at[i])); });
  }
  static Int max_int(const Int& a, const Int& b) {
    return each_int([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Int min_int(const Int& a, const Int& b) {
    return each_int([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Mask greater(const Int& a, const Int& b) {
    return each_int([&](int i) { return -static_cast<int32_t>(a.at[i] > b.at[i]); });
  }
  static Mask equal(const Int& a, const Int& b) {
    return each_int([&](int i) { return -static_cast<int32_t>(a.at[i] == b.at[i]); });
  }
  static Mask both(const Mask& a, const Mask& b) {
    return each_int([&](int i) { return a.at[i] & b.at[i]; });
  }
  static Int or_unless(const Mask& mask, const Int& v, const Int& bit) {
    return each_int([&](int i) { return v.at[i] | (~mask.at[i] & bit.at[i]); });
  }
  static Int clear_where(const Mask& mask, const Int& v, const Int& bit) {
    return each_int([&](int i) { return v.at[i] & ~(mask.at[i] & bit.at[i]); });
  }
  static Int increment_unless(const Mask& mask, const Int& v) {
    return each_int([&](int i) { return v.at[i] + 1 + mask.at[i]; });
  }
  static Int increment_where(const Mask& mask, const Int& v) {
    return each_int([&](int i) { return v.at[i] - mask.at[i]; });
  }
  static Int decrement_where(const Mask& mask, const Int& v) {
    return each_int([&](int i) { return v.at[i] + mask.at[i]; });
  }
  static bool any_positive(const Int& v) {
    int32_t any = 0;
    for (size_t i = 0; i < kWidth; ++i) any |= static_cast<int32_t>(v.at[i] > 0);
    return any != 0;
  }

  static Int load_channel(const int32_t* source, int m) {
    return each_int([=](int i) { return source[i * m]; });
  }
  static void load_four_channels(const int32_t* source, int m, Int* channel) {
    for (int c = 0; c < 4; ++c) channel[c] = load_channel(source + c, m);
  }

  static constexpr size_t kDoubles = kWidth;
  struct Double {
    double at[kDoubles];
  };
  template <class Operation>
  static Double each_double(Operation operation) {
    Double result;
    for (size_t i = 0; i < kDoubles; ++i) result.at[i] = operation(i);
    return result;
  }
  static Double widen(const float* source) {
    return each_double([=](size_t i) { return static_cast<double>(source[i]); });
  }
  static void store_double(double* target, const Double& v) {
    for (size_t i = 0; i < kDoubles; ++i) target[i] = v.at[i];
  }
  static Double broadcast_double(double value) {
    return each_double([=](size_t) { return value; });
  }
  static Double add_double(const Double& a, const Double& b) {
    return each_double([&](size_t i) { return a.at[i] + b.at[i]; });
  }
  static Double sub_double(const Double& a, const Double& b) {
    return each_double([&](size_t i) { return a.at[i] - b.at[i]; });
  }
  static Double mul_double(const Double& a, const Double& b) {
    return each_double([&](size_t i) { return a.at[i] * b.at[i]; });
  }

  static constexpr bool kComparesToBits = false;
  static constexpr bool kCompresses = false;

  static constexpr bool kDots4 = true;
  static Float to_float(const Int& v) {
    return each([&](size_t i) { return static_cast<float>(v.at[i]); });
  }
  static constexpr bool kLoadsFew = false;
  template <size_t kBits>
  class Dot4Sums {
   public:
    static constexpr size_t kOutputs = 2 * kWidth;
    static constexpr size_t kMostAdds = 16;

    void add(const uint8_t* const* rows, size_t offset, size_t, uint32_t dot4, const uint32_t*) {
      for (int r = 0; r < 4; ++r) {
        const uint8_t* row = rows[r] + offset;
        const auto activation = static_cast<int8_t>(dot4 >> (8 * r) & 0xffu);
        for (size_t i = 0; i < kOutputs; ++i) sums_[i] += activation * integer<kBits>(row, i);
      }
    }
    void widen() {}
    void in_order(Int* v) const {
      for (size_t i = 0; i < kOutputs; ++i) v[i / kWidth].at[i % kWidth] = sums_[i];
    }

   private:
    int32_t sums_[kOutputs] = {};
  };

 private:
  template <size_t kBits>
  static int integer(const uint8_t* source, size_t i) {
    return kBits == 8 ? source[i] : source[i / 2] >> (i % 2 * 4) & 15;
  }
  static uint32_t unsigned_of(int32_t value) { return static_cast<uint32_t>(value); }
  static int32_t wrapped(uint32_t value) { return static_cast<int32_t>(value); }
};

}  // namespace
}  // namespace nm_export
