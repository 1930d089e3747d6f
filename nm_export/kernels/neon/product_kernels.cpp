// NEON of aarch64: pairs of vectors, so that a token has 16 sums of its own in the 32 registers, as many as several
// multiply-add units need to stay busy; tiles of 64 x 64 weights, half of a first-level cache of 32 KiB.
#include <arm_neon.h>
#include <string.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "product_kernels_impl.h"

namespace nm_export {
namespace {

struct NeonProducts {
  static constexpr size_t kWidth = 8;
  struct Float {
    float32x4_t low;
    float32x4_t high;
  };

  static Float load(const float* source) { return {vld1q_f32(source), vld1q_f32(source + 4)}; }
  static Float load(const Float16* source) {
    const uint16x8_t bits = load_bits(source);
    return {vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(bits))),
            vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(bits)))};
  }
  static Float load(const BFloat16* source) {
    const uint16x8_t bits = load_bits(source);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
  }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(source->bits))), 0);
  }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) {
    vst1q_f32(target, v.low);
    vst1q_f32(target + 4, v.high);
  }
  static Float broadcast(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  static Float fma(Float a, Float b, Float c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static uint32_t nonzero(Float v) {
    static constexpr uint32_t kBits[kWidth] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint32x4_t low = vbicq_u32(vld1q_u32(kBits), vceqzq_f32(v.low));
    const uint32x4_t high = vbicq_u32(vld1q_u32(kBits + 4), vceqzq_f32(v.high));
    return vaddvq_u32(vorrq_u32(low, high));
  }
#ifdef _MSC_VER
  static void prefetch(const void* at) { __prefetch2(at, 2); }  // PLDL2KEEP
#else
  static void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }
#endif

  template <size_t kBits>
  static Float codes(const uint8_t* bytes) {
    uint16x8_t integers;
    if (kBits == 8) {
      integers = vmovl_u8(vld1_u8(bytes));
    } else {
      const uint8x8_t pairs = vcreate_u8(load_four(bytes));
      integers = vmovl_u8(vzip1_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4)));
    }
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(integers))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(integers)))};
  }

  static uint64_t compact(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
    return compact_one_by_one(v, channels, first, row, value);
  }

 private:
  static uint32_t load_four(const uint8_t* bytes) {
    uint32_t all;
    memcpy(&all, bytes, sizeof all);
    return all;
  }
  static uint16x8_t load_bits(const void* source) { return vld1q_u16(static_cast<const uint16_t*>(source)); }
};

}  // namespace

const ProductKernels kNeonProducts = product_kernels<NeonProducts>();

}  // namespace nm_export
