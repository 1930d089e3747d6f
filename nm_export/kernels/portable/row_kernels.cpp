// Plain C++ in loops of eight, which compilers turn into whatever vectors the target has by default.
#include "row_kernels_impl.h"
#include "widen_half.h"

namespace nm_export {
namespace {

uint16_t narrow_half(float value) {
  const auto bits = static_cast<uint32_t>(bits_of(value));
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude_bits = bits & 0x7fffffffu;
  if (magnitude_bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  // 65520 is the first number that rounds beyond the largest float16.
  if (magnitude_bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude_bits < 0x38800000u) {
    // Below 2^-14: adding 0.5 makes float32 round the mantissa at 2^-24, the unit of float16's subnormals.
    const float shifted_up = float_of(magnitude_bits) + 0.5f;
    return static_cast<uint16_t>(sign | (static_cast<uint32_t>(bits_of(shifted_up)) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude_bits - (112u << 23) + 0xfffu + (magnitude_bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

struct PortableLanes {
  static constexpr int kWidth = 8;
  struct Int {
    int32_t at[kWidth];
  };
  struct Float {
    float at[kWidth];
  };
  using Mask = Int;  // -1 where true, 0 where false

  template <class Operation>
  static Int each(Operation operation) {
    Int result;
    for (int i = 0; i < kWidth; ++i) result.at[i] = operation(i);
    return result;
  }
  template <class Operation>
  static Float each_float(Operation operation) {
    Float result;
    for (int i = 0; i < kWidth; ++i) result.at[i] = operation(i);
    return result;
  }

  static Float load(const float* source) {
    return each_float([=](int i) { return source[i]; });
  }
  static void store(float* target, const Float& v) {
    for (int i = 0; i < kWidth; ++i) target[i] = v.at[i];
  }
  static Int load_int(const int32_t* source) {
    return each([=](int i) { return source[i]; });
  }
  static void store_int(int32_t* target, const Int& v) {
    for (int i = 0; i < kWidth; ++i) target[i] = v.at[i];
  }
  static Float broadcast(float value) {
    return each_float([=](int) { return value; });
  }
  static Int broadcast_int(int32_t value) {
    return each([=](int) { return value; });
  }
  static Int load_channel(const int32_t* source, int m) {
    return each([=](int i) { return source[i * m]; });
  }
  static void load_four_channels(const int32_t* source, int m, Int* channel) {
    for (int c = 0; c < 4; ++c) channel[c] = load_channel(source + c, m);
  }
  static Float sub(const Float& a, const Float& b) {
    return each_float([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return each_float([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Int key(const Float& z, const Float& score) {
    return each([&](int i) { return key_of(z.at[i], score.at[i]); });
  }
  static Int max(const Int& a, const Int& b) {
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Int min(const Int& a, const Int& b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static constexpr bool kComparesToBits = false;
  static Mask greater(const Int& a, const Int& b) {
    return each([&](int i) { return -static_cast<int32_t>(a.at[i] > b.at[i]); });
  }
  static Mask equal(const Int& a, const Int& b) {
    return each([&](int i) { return -static_cast<int32_t>(a.at[i] == b.at[i]); });
  }
  static Mask both(const Mask& a, const Mask& b) {
    return each([&](int i) { return a.at[i] & b.at[i]; });
  }
  static Int or_unless(const Mask& mask, const Int& v, const Int& bit) {
    return each([&](int i) { return v.at[i] | (~mask.at[i] & bit.at[i]); });
  }
  static Int clear_where(const Mask& mask, const Int& v, const Int& bit) {
    return each([&](int i) { return v.at[i] & ~(mask.at[i] & bit.at[i]); });
  }
  static Int increment_unless(const Mask& mask, const Int& v) {
    return each([&](int i) { return v.at[i] + 1 + mask.at[i]; });
  }
  static Int increment_where(const Mask& mask, const Int& v) {
    return each([&](int i) { return v.at[i] - mask.at[i]; });
  }
  static Int decrement_where(const Mask& mask, const Int& v) {
    return each([&](int i) { return v.at[i] + mask.at[i]; });
  }
  static bool any_positive(const Int& v) {
    int32_t any = 0;
    for (int i = 0; i < kWidth; ++i) any |= static_cast<int32_t>(v.at[i] > 0);
    return any != 0;
  }
  // v where the bit of the lane is set, +0 elsewhere. Without a branch, which would be mispredicted often.
  static Float where(uint32_t mask, const Float& v) {
    return each_float(
        [&](int i) { return float_of(static_cast<uint32_t>(bits_of(v.at[i])) & (0u - (mask >> i & 1u))); });
  }

  static bool any_nan(const Float& v) {
    bool any = false;
    for (int i = 0; i < kWidth; ++i) any |= v.at[i] != v.at[i];
    return any;
  }
  static Mask less(const Float& a, const Float& b) {
    return each([&](int i) { return -static_cast<int32_t>(a.at[i] < b.at[i]); });
  }
  static constexpr bool kCompresses = false;

  static Float load_half(const uint16_t* source) {
    return each_float([=](int i) { return widen_half(source[i]); });
  }
  static void store_half(uint16_t* target, const Float& v) {
    for (int i = 0; i < kWidth; ++i) target[i] = narrow_half(v.at[i]);
  }

  static constexpr int kDoubles = kWidth;
  struct Double {
    double at[kDoubles];
  };
  template <class Operation>
  static Double each_double(Operation operation) {
    Double result;
    for (int i = 0; i < kDoubles; ++i) result.at[i] = operation(i);
    return result;
  }
  static Double widen(const float* source) {
    return each_double([=](int i) { return static_cast<double>(source[i]); });
  }
  static void store_double(double* target, const Double& v) {
    for (int i = 0; i < kDoubles; ++i) target[i] = v.at[i];
  }
  static Double broadcast_double(double value) {
    return each_double([=](int) { return value; });
  }
  static Double add_double(const Double& a, const Double& b) {
    return each_double([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Double sub_double(const Double& a, const Double& b) {
    return each_double([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Double mul_double(const Double& a, const Double& b) {
    return each_double([&](int i) { return a.at[i] * b.at[i]; });
  }
};

}  // namespace

const RowKernels kPortableKernels = row_kernels<PortableLanes>();

}  // namespace nm_export
