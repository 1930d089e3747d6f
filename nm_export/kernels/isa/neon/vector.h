// NEON of aarch64 as isa/vector_concept.h wants it: four lanes, so that the 16 channels of an 8:16 network stay in the
// 32 registers.
#pragma once

#include <arm_neon.h>
#include <string.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "isa/vector_concept.h"
#include "selection/score_key.h"

namespace nm_export {
namespace {

struct NeonVector {
  static constexpr size_t kWidth = 4;
  using Float = float32x4_t;
  using Int = int32x4_t;
  using Mask = uint32x4_t;  // all bits set where true

  static Float load(const float* source) { return vld1q_f32(source); }
  static Float load(const Float16* source) { return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(source))); }
  static Float load(const BFloat16* source) { return vreinterpretq_f32_u32(vshll_n_u16(load_halves(source), 16)); }
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(source->bits))), 0);
  }
  static float one(const BFloat16* source) { return widened(*source); }
  static void store(float* target, Float v) { vst1q_f32(target, v); }
  static void store_float16(Float16* target, Float v) {
    vst1_u16(&target->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  static Int load_int(const int32_t* source) { return vld1q_s32(source); }
  static void store_int(int32_t* target, Int v) { vst1q_s32(target, v); }
  static Float broadcast(float value) { return vdupq_n_f32(value); }
  static Int broadcast_int(int32_t value) { return vdupq_n_s32(value); }
#ifdef _MSC_VER
  static void prefetch(const void* at) { __prefetch2(at, 2); }       // PLDL2KEEP
  static void prefetch_near(const void* at) { __prefetch2(at, 0); }  // PLDL1KEEP
#else
  static void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }
  static void prefetch_near(const void* at) { __builtin_prefetch(at); }
#endif
  template <size_t kBits>
  static Float integers(const uint8_t* source) {
    uint32_t stored = 0;
    memcpy(&stored, source, kWidth * kBits / 8);
    uint8x8_t bytes = vcreate_u8(stored);
    if (kBits == 4) bytes = vzip1_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }

  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static bool any_nan(Float v) { return vminvq_u32(vceqq_f32(v, v)) == 0; }
  static Mask less(Float a, Float b) { return vcltq_f32(a, b); }
  static uint32_t nonzero(Float v) { return vaddvq_u32(vbicq_u32(lane_bits(), vceqzq_f32(v))); }
  static Float where(uint32_t bits, Float v) {
    const Mask set = vtstq_u32(vdupq_n_u32(bits), lane_bits());
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), set));
  }

  static Int key(Float z, Float score) {
    const Int bits = vreinterpretq_s32_f32(vmulq_f32(vabsq_f32(z), score));
    return vminq_s32(vandq_s32(bits, broadcast_int(kMagnitudeBits)), broadcast_int(kNanKey));
  }

  static Int add_int(Int a, Int b) { return vaddq_s32(a, b); }
  static Int sub_int(Int a, Int b) { return vsubq_s32(a, b); }
  static Int max_int(Int a, Int b) { return vmaxq_s32(a, b); }
  static Int min_int(Int a, Int b) { return vminq_s32(a, b); }
  static Mask greater(Int a, Int b) { return vcgtq_s32(a, b); }
  static Mask equal(Int a, Int b) { return vceqq_s32(a, b); }
  static Mask both(Mask a, Mask b) { return vandq_u32(a, b); }
  static Int or_unless(Mask mask, Int v, Int bit) { return vorrq_s32(v, vbicq_s32(bit, as_int(mask))); }
  static Int clear_where(Mask mask, Int v, Int bit) { return vbicq_s32(v, vandq_s32(bit, as_int(mask))); }
  static Int increment_unless(Mask mask, Int v) { return vaddq_s32(v, vaddq_s32(as_int(mask), broadcast_int(1))); }
  static Int increment_where(Mask mask, Int v) { return vsubq_s32(v, as_int(mask)); }
  static Int decrement_where(Mask mask, Int v) { return vaddq_s32(v, as_int(mask)); }
  static bool any_positive(Int v) { return vmaxvq_s32(v) > 0; }

  static Int load_channel(const int32_t* source, int m) {
    const int32_t at[kWidth] = {source[0], source[m], source[2 * m], source[3 * m]};
    return vld1q_s32(at);
  }
  // Row r holds four channels of group r: a 4 x 4 transpose.
  static void load_four_channels(const int32_t* source, int m, Int* channel) {
    Int row[4];
    for (int r = 0; r < 4; ++r) row[r] = vld1q_s32(source + r * m);
    const Int low01 = vzip1q_s32(row[0], row[1]);
    const Int high01 = vzip2q_s32(row[0], row[1]);
    const Int low23 = vzip1q_s32(row[2], row[3]);
    const Int high23 = vzip2q_s32(row[2], row[3]);
    channel[0] = joined_low(low01, low23);
    channel[1] = joined_high(low01, low23);
    channel[2] = joined_low(high01, high23);
    channel[3] = joined_high(high01, high23);
  }

  static constexpr size_t kDoubles = 2;
  using Double = float64x2_t;
  static Double widen(const float* source) { return vcvt_f64_f32(vld1_f32(source)); }
  static void store_double(double* target, Double v) { vst1q_f64(target, v); }
  static Double broadcast_double(double value) { return vdupq_n_f64(value); }
  static Double add_double(Double a, Double b) { return vaddq_f64(a, b); }
  static Double sub_double(Double a, Double b) { return vsubq_f64(a, b); }
  static Double mul_double(Double a, Double b) { return vmulq_f64(a, b); }

  static constexpr bool kComparesToBits = false;
  static constexpr bool kCompresses = false;
  static constexpr bool kDots4 = false;

 private:
  static uint16x4_t load_halves(const void* source) { return vld1_u16(static_cast<const uint16_t*>(source)); }
  static uint32x4_t lane_bits() {
    static constexpr uint32_t kBits[kWidth] = {1, 2, 4, 8};
    return vld1q_u32(kBits);
  }
  static Int as_int(Mask mask) { return vreinterpretq_s32_u32(mask); }
  static Int joined_low(Int a, Int b) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
  static Int joined_high(Int a, Int b) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
};

}  // namespace
}  // namespace nm_export
