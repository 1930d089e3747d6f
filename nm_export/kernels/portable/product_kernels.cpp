// Plain C++ in loops of eight, which compilers turn into whatever vectors the target has by default.
#include "product_kernels_impl.h"
#include "widen_half.h"

namespace nm_export {
namespace {

struct PortableProducts {
  static constexpr size_t kWidth = 8;
  struct Float {
    float at[kWidth];
  };

  template <class Operation>
  static Float each(Operation operation) {
    Float result;
    for (size_t i = 0; i < kWidth; ++i) result.at[i] = operation(i);
    return result;
  }

  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return widen_half(source->bits); }
  static float one(const BFloat16* source) { return widened(*source); }
  template <class Stored>
  static Float load(const Stored* source) {
    return each([=](size_t i) { return one(source + i); });
  }
  static void store(float* target, const Float& v) {
    for (size_t i = 0; i < kWidth; ++i) target[i] = v.at[i];
  }
  static Float broadcast(float value) {
    return each([=](size_t) { return value; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each([&](size_t i) { return a.at[i] * b.at[i] + c.at[i]; });
  }
  static uint32_t nonzero(const Float& v) {
    uint32_t mask = 0;
    for (size_t i = 0; i < kWidth; ++i) mask |= (v.at[i] != 0 ? 1u : 0u) << i;
    return mask;
  }
  static void prefetch(const void*) {}
  template <size_t kBits>
  static Float codes(const uint8_t* bytes) {
    return each([=](size_t i) { return float_code_at<kBits>(bytes, i); });
  }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    return compact_one_by_one(v, channels, first, row, value);
  }
};

}  // namespace

const ProductKernels kPortableProducts = product_kernels<PortableProducts>();

}  // namespace nm_export
