// The row kernels, written over a vector type `Lanes` that every instruction set defines.
//
// Selection works on blocks of kWidth groups. The scores of a block become integer keys, are transposed so that lane
// g of vector c holds channel c of group g, and a selection network finds the n-th largest key of all groups at once.
// A group keeps the keys that are not below it; where ties make these too many, the last of the equal ones go.
//
// Everything is in an unnamed namespace: each instruction set needs a copy of its own.
#pragma once

#include "row_kernels.h"

namespace nm_export {
namespace {

// Scores are not negative, so their bits order like themselves; every NaN becomes one key just above +inf.
constexpr int32_t kMagnitudeBits = 0x7fffffff;
constexpr int32_t kNanKey = 0x7f800001;

inline int32_t bits_of(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float magnitude(float z) { return float_of(static_cast<uint32_t>(bits_of(z) & kMagnitudeBits)); }

inline int32_t key_of(float z, float score) {
  const int32_t key = bits_of(magnitude(z) * score) & kMagnitudeBits;
  return key < kNanKey ? key : kNanKey;
}

template <class Lanes>
typename Lanes::Float shifted(const float* x, Shift shift, size_t i) {
  return Lanes::sub(Lanes::load(x + i), shift.vector ? Lanes::load(shift.vector + i) : Lanes::broadcast(shift.scalar));
}

inline float shifted_one(const float* x, Shift shift, size_t i) {
  return x[i] - (shift.vector ? shift.vector[i] : shift.scalar);
}

// Keeps of a block as one string of bits, channel after channel: bit i belongs to channel i of the block.
struct KeepBits {
  uint64_t words[kMaxGroupSize * 16 / 64 + 1];
};

inline void pack(const uint32_t* low, const uint32_t* high, int groups, int m, KeepBits& keep) {
  uint64_t word = 0;
  int filled = 0;
  int at = 0;
  for (int g = 0; g < groups; ++g) {
    const uint64_t bits = low[g] | static_cast<uint64_t>(high[g]) << 32;
    word |= bits << filled;
    filled += m;
    if (filled >= 64) {
      keep.words[at++] = word;
      filled -= 64;
      // A shift by 64 is undefined; nothing is left over when the word was filled exactly.
      word = filled ? bits >> (m - filled) : 0;
    }
  }
  keep.words[at] = word;
}

// The keeps of `groups` <= kWidth groups whose keys lie one after the other at `keys`. `keys` has room for kWidth
// groups; what is in the unused ones does not matter.
template <class Lanes>
void select_block(const int32_t* keys, const Pattern& pattern, int groups, KeepBits& keep) {
  using Int = typename Lanes::Int;
  constexpr int kWidth = Lanes::kWidth;
  const int m = pattern.m;

  Int channel[kMaxGroupSize];
  Int sorted[kMaxGroupSize];
  for (int c = 0; c < m; ++c) sorted[c] = channel[c] = Lanes::load_strided(keys + c, m);
  for (int i = 0; i < pattern.network.size; ++i) {
    const Comparator step = pattern.network.steps[i];
    const Int a = sorted[step.high];
    const Int b = sorted[step.low];
    sorted[step.high] = Lanes::max(a, b);
    sorted[step.low] = Lanes::min(a, b);
  }
  const Int threshold = sorted[pattern.n - 1];

  Int bits[2] = {Lanes::broadcast_int(0), Lanes::broadcast_int(0)};
  Int excess = Lanes::broadcast_int(-pattern.n);
  for (int c = 0; c < m; ++c) {
    const auto below = Lanes::greater(threshold, channel[c]);
    bits[c / 32] = Lanes::or_unless(below, bits[c / 32], Lanes::broadcast_int(static_cast<int32_t>(1u << (c % 32))));
    excess = Lanes::increment_unless(below, excess);
  }
  if (Lanes::any_positive(excess)) {
    for (int c = m - 1; c >= 0; --c) {
      const auto drop = Lanes::both(Lanes::equal(threshold, channel[c]), Lanes::greater(excess, Lanes::broadcast_int(0)));
      bits[c / 32] = Lanes::clear_where(drop, bits[c / 32], Lanes::broadcast_int(static_cast<int32_t>(1u << (c % 32))));
      excess = Lanes::decrement_where(drop, excess);
    }
  }
  alignas(64) uint32_t low[kWidth];
  alignas(64) uint32_t high[kWidth];
  Lanes::store_int(reinterpret_cast<int32_t*>(low), bits[0]);
  Lanes::store_int(reinterpret_cast<int32_t*>(high), bits[1]);
  pack(low, high, groups, m, keep);
}

template <class Lanes>
void prune(const float* x, const float* score, Shift shift, size_t channels, const Pattern& pattern, float* values) {
  constexpr size_t kWidth = Lanes::kWidth;
  const size_t m = static_cast<size_t>(pattern.m);
  const size_t block = kWidth * m;
  alignas(64) int32_t keys[kMaxGroupSize * kWidth] = {};
  KeepBits keep;
  for (size_t start = 0; start < channels; start += block) {
    const size_t count = channels - start < block ? channels - start : block;
    size_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      Lanes::store_int(keys + i, Lanes::key(shifted<Lanes>(x, shift, start + i), Lanes::load(score + start + i)));
    }
    for (; i < count; ++i) keys[i] = key_of(shifted_one(x, shift, start + i), score[start + i]);

    select_block<Lanes>(keys, pattern, static_cast<int>(count / m), keep);

    for (i = 0; i + kWidth <= count; i += kWidth) {
      const auto mask = static_cast<uint32_t>(keep.words[i / 64] >> (i % 64));
      Lanes::store(values + start + i, Lanes::where(mask, shifted<Lanes>(x, shift, start + i)));
    }
    for (; i < count; ++i) {
      const bool kept = keep.words[i / 64] >> (i % 64) & 1;
      values[start + i] = kept ? shifted_one(x, shift, start + i) : 0.0f;
    }
  }
}

template <class Lanes>
void subtract(const float* x, Shift shift, size_t channels, float* z) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) Lanes::store(z + i, shifted<Lanes>(x, shift, i));
  for (; i < channels; ++i) z[i] = shifted_one(x, shift, i);
}

template <class Lanes>
void scale(float* values, float factor, size_t channels) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    Lanes::store(values + i, Lanes::mul(Lanes::load(values + i), Lanes::broadcast(factor)));
  }
  for (; i < channels; ++i) values[i] *= factor;
}

template <class Lanes>
double sum(const float* v, size_t channels) {
  typename Lanes::Sum total{};
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) total.add(v + i);
  double rest = 0;
  for (; i < channels; ++i) rest += static_cast<double>(v[i]);
  return total.total() + rest;
}

template <class Lanes>
double sum_of_squares(const float* v, double mean, size_t channels) {
  typename Lanes::Sum total{};
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) total.add_squares(v + i, mean);
  double rest = 0;
  for (; i < channels; ++i) {
    const double difference = static_cast<double>(v[i]) - mean;
    rest += difference * difference;
  }
  return total.total() + rest;
}

inline void widen_bfloat16(const uint16_t* source, size_t channels, float* target) {
  for (size_t i = 0; i < channels; ++i) target[i] = float_of(static_cast<uint32_t>(source[i]) << 16);
}

inline void narrow_bfloat16(const float* source, size_t channels, uint16_t* target) {
  for (size_t i = 0; i < channels; ++i) {
    const auto bits = static_cast<uint32_t>(bits_of(source[i]));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i] = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

}  // namespace
}  // namespace nm_export
