// The row kernels, written over a vector type `Lanes` that every instruction set defines. Its functions are not
// overloaded by vector types: some compilers have one type for all of them.
//
// Selection works on blocks of kWidth groups. The scores of a block become integer keys, are transposed so that lane
// g of vector c holds channel c of group g, and a selection network finds the n-th largest key of all groups at once.
// A group keeps the keys that are not below it; where ties make these too many, the last of the equal ones go.
//
// Everything is in an unnamed namespace: each instruction set needs a copy of its own.
#pragma once

#include <utility>  // types only

#include "row_kernels.h"
#include "score_key.h"

namespace nm_export {
namespace {

// z = x - shift, where the shift is a vector of channels or one number.
template <class Lanes>
struct VectorShift {
  const float* vector;
  typename Lanes::Float lanes(const float* x, size_t i) const {
    return Lanes::sub(Lanes::load(x + i), Lanes::load(vector + i));
  }
  float one(const float* x, size_t i) const { return x[i] - vector[i]; }
};

template <class Lanes>
struct ScalarShift {
  float scalar;
  typename Lanes::Float lanes(const float* x, size_t i) const {
    return Lanes::sub(Lanes::load(x + i), Lanes::broadcast(scalar));
  }
  float one(const float* x, size_t i) const { return x[i] - scalar; }
};

// Keeps of a block as one string of bits, channel after channel: bit i belongs to channel i of the block.
struct KeepBits {
  uint64_t words[kMaxGroupSize * 16 / 64 + 1];
};

// For a pattern whose m is not known when this is compiled.
inline void pack_any(const uint64_t* bits, int groups, int m, KeepBits& keep) {
  uint64_t word = 0;
  int filled = 0;
  int at = 0;
  for (int g = 0; g < groups; ++g) {
    word |= bits[g] << filled;
    filled += m;
    if (filled >= 64) {
      keep.words[at++] = word;
      filled -= 64;
      // A shift by 64 is undefined; nothing is left over when the word was filled exactly.
      word = filled ? bits[g] >> (m - filled) : 0;
    }
  }
  keep.words[at] = word;
}

// The same for all groups of a block, with an m that divides 64.
template <int kM, int kWidth>
void pack(const uint32_t* bits, KeepBits& keep) {
  constexpr int kPerWord = 64 / kM;
  for (int w = 0; w * kPerWord < kWidth; ++w) {
    uint64_t word = 0;
    for (int g = 0; g < kPerWord && w * kPerWord + g < kWidth; ++g) {
      word |= static_cast<uint64_t>(bits[w * kPerWord + g]) << (g * kM);
    }
    keep.words[w] = word;
  }
}

// Networks whose steps are known when this is compiled stay in registers.
template <int kN, int kM>
struct FixedNetwork {
  static constexpr SelectionNetwork value = make_selection_network(kN, kM);
};

template <class Lanes, int kHigh, int kLow>
inline void compare_exchange(typename Lanes::Int* sorted) {
  const auto a = sorted[kHigh];
  const auto b = sorted[kLow];
  sorted[kHigh] = Lanes::max(a, b);
  sorted[kLow] = Lanes::min(a, b);
}

template <class Lanes, int kN, int kM, size_t... kStep>
typename Lanes::Int unrolled_threshold(const typename Lanes::Int* channel, std::index_sequence<kStep...>) {
  using Network = FixedNetwork<kN, kM>;
  typename Lanes::Int sorted[kM];
  for (int c = 0; c < kM; ++c) sorted[c] = channel[c];
  (compare_exchange<Lanes, Network::value.steps[kStep].high, Network::value.steps[kStep].low>(sorted), ...);
  return sorted[kN - 1];
}

template <class Lanes, int kN, int kM>
typename Lanes::Int unrolled_threshold(const typename Lanes::Int* channel) {
  return unrolled_threshold<Lanes, kN, kM>(channel, std::make_index_sequence<FixedNetwork<kN, kM>::value.size>());
}

template <class Lanes>
typename Lanes::Int any_threshold(const typename Lanes::Int* channel, int m, const Pattern& pattern) {
  typename Lanes::Int sorted[kMaxGroupSize];
  for (int c = 0; c < m; ++c) sorted[c] = channel[c];
  for (int i = 0; i < pattern.network.size; ++i) {
    const Comparator step = pattern.network.steps[i];
    const auto a = sorted[step.high];
    const auto b = sorted[step.low];
    sorted[step.high] = Lanes::max(a, b);
    sorted[step.low] = Lanes::min(a, b);
  }
  return sorted[pattern.n - 1];
}

// Which of the channels [first, last) every group keeps, as bits counted from `first`: those whose key is not below
// the threshold. `excess`, -n at first, ends as the number of keys that are kept beyond n.
template <class Lanes>
typename Lanes::Int keep_at_least(const typename Lanes::Int* channel, int first, int last,
                                  typename Lanes::Int threshold, typename Lanes::Int& excess) {
  auto bits = Lanes::broadcast_int(0);
  for (int c = first; c < last; ++c) {
    const auto below = Lanes::greater(threshold, channel[c]);
    bits = Lanes::or_unless(below, bits, Lanes::broadcast_int(static_cast<int32_t>(1u << (c - first))));
    excess = Lanes::increment_unless(below, excess);
  }
  return bits;
}

// Takes the last of the equal keys away until there is no excess.
template <class Lanes>
typename Lanes::Int drop_last_equals(const typename Lanes::Int* channel, int first, int last,
                                     typename Lanes::Int threshold, typename Lanes::Int bits,
                                     typename Lanes::Int& excess) {
  const auto zero = Lanes::broadcast_int(0);
  for (int c = last - 1; c >= first; --c) {
    const auto drop = Lanes::both(Lanes::equal(threshold, channel[c]), Lanes::greater(excess, zero));
    bits = Lanes::clear_where(drop, bits, Lanes::broadcast_int(static_cast<int32_t>(1u << (c - first))));
    excess = Lanes::decrement_where(drop, excess);
  }
  return bits;
}

// The keeps of one block, for m = 4, 8, 16 or 32. `keys` holds kWidth groups one after the other.
template <class Lanes, int kM>
void select_block(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  using Int = typename Lanes::Int;
  Int channel[kM];  // lane g of channel[c] is channel c of group g
  for (int c = 0; c < kM; c += 4) Lanes::load_four_channels(keys + c, kM, channel + c);
  const Int threshold =
      pattern.n * 2 == kM ? unrolled_threshold<Lanes, kM / 2, kM>(channel) : any_threshold<Lanes>(channel, kM, pattern);
  Int excess = Lanes::broadcast_int(-pattern.n);
  Int bits = keep_at_least<Lanes>(channel, 0, kM, threshold, excess);
  if (Lanes::any_positive(excess)) bits = drop_last_equals<Lanes>(channel, 0, kM, threshold, bits, excess);

  alignas(64) uint32_t group_bits[Lanes::kWidth];
  Lanes::store_int(reinterpret_cast<int32_t*>(group_bits), bits);
  pack<kM, Lanes::kWidth>(group_bits, keep);
}

// The same for any m.
template <class Lanes>
void select_any_block(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  using Int = typename Lanes::Int;
  const int m = pattern.m;
  const int half = m < 32 ? m : 32;
  Int channel[kMaxGroupSize];
  if (m % 4 == 0) {
    for (int c = 0; c < m; c += 4) Lanes::load_four_channels(keys + c, m, channel + c);
  } else {
    for (int c = 0; c < m; ++c) channel[c] = Lanes::load_channel(keys + c, m);
  }
  const Int threshold = any_threshold<Lanes>(channel, m, pattern);
  Int excess = Lanes::broadcast_int(-pattern.n);
  Int low = keep_at_least<Lanes>(channel, 0, half, threshold, excess);
  Int high = keep_at_least<Lanes>(channel, half, m, threshold, excess);
  if (Lanes::any_positive(excess)) {
    high = drop_last_equals<Lanes>(channel, half, m, threshold, high, excess);
    low = drop_last_equals<Lanes>(channel, 0, half, threshold, low, excess);
  }

  alignas(64) uint32_t low_bits[Lanes::kWidth];
  alignas(64) uint32_t high_bits[Lanes::kWidth];
  Lanes::store_int(reinterpret_cast<int32_t*>(low_bits), low);
  Lanes::store_int(reinterpret_cast<int32_t*>(high_bits), high);
  uint64_t bits[Lanes::kWidth];
  for (int g = 0; g < Lanes::kWidth; ++g) bits[g] = low_bits[g] | static_cast<uint64_t>(high_bits[g]) << 32;
  pack_any(bits, Lanes::kWidth, m, keep);
}

// The keeps of the kWidth groups whose keys lie one after the other at `keys`.
template <class Lanes>
void select(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  switch (pattern.m) {
    case 4:
      return select_block<Lanes, 4>(keys, pattern, keep);
    case 8:
      return select_block<Lanes, 8>(keys, pattern, keep);
    case 16:
      return select_block<Lanes, 16>(keys, pattern, keep);
    case 32:
      return select_block<Lanes, 32>(keys, pattern, keep);
    default:
      return select_any_block<Lanes>(keys, pattern, keep);
  }
}

// What a selection reads and writes, for the two uses of it: keys of the channels from i on, and what becomes of them.
template <class Lanes, class AnyShift>
struct PrunedRow {
  const float* x;
  const float* score;
  AnyShift shift;
  float* values;

  typename Lanes::Int keys(size_t i) const { return Lanes::key(shift.lanes(x, i), Lanes::load(score + i)); }
  int32_t key(size_t i) const { return key_of(shift.one(x, i), score[i]); }
  void keep(size_t i, uint32_t bits) const { Lanes::store(values + i, Lanes::where(bits, shift.lanes(x, i))); }
  void keep_one(size_t i, bool kept) const { values[i] = kept ? shift.one(x, i) : 0.0f; }
};

template <class Lanes>
struct MaskedRow {
  const float* scores;
  uint8_t* mask;

  typename Lanes::Int keys(size_t i) const { return Lanes::key(Lanes::load(scores + i), Lanes::broadcast(1.0f)); }
  int32_t key(size_t i) const { return key_of(scores[i], 1.0f); }
  void keep(size_t i, uint32_t bits) const {
    for (int lane = 0; lane < Lanes::kWidth; ++lane) mask[i + static_cast<size_t>(lane)] = bits >> lane & 1u;
  }
  void keep_one(size_t i, bool kept) const { mask[i] = kept; }
};

// Of each group of a block, the lowest key that is kept.
template <class Lanes, int kN, int kM>
typename Lanes::Int fixed_threshold(const int32_t* keys) {
  typename Lanes::Int channel[kM];
  for (int c = 0; c < kM; c += 4) Lanes::load_four_channels(keys + c, kM, channel + c);
  return unrolled_threshold<Lanes, kN, kM>(channel);
}

template <class Lanes, int kM, size_t... kN>
typename Lanes::Int tabled_threshold(const int32_t* keys, int n, std::index_sequence<kN...>) {
  using Threshold = typename Lanes::Int (*)(const int32_t*);
  constexpr Threshold kOf[] = {fixed_threshold<Lanes, static_cast<int>(kN) + 1, kM>...};
  return kOf[n - 1](keys);
}

// For m = 4, 8, 16 or 32; only of groups of 32, all the networks would be much code.
template <class Lanes, int kM>
typename Lanes::Int block_threshold(const int32_t* keys, const Pattern& pattern) {
  if (pattern.n * 2 == kM) return fixed_threshold<Lanes, kM / 2, kM>(keys);
  if constexpr (kM <= 16) {
    return tabled_threshold<Lanes, kM>(keys, pattern.n, std::make_index_sequence<kM - 1>());
  } else {
    typename Lanes::Int channel[kM];
    for (int c = 0; c < kM; c += 4) Lanes::load_four_channels(keys + c, kM, channel + c);
    return any_threshold<Lanes>(channel, kM, pattern);
  }
}

// One block, or the whole groups of a last one, without the detour over bits, for an instruction set that compares to
// them: keeps what is not below the threshold of its group. False where a group keeps more than n that way; what was
// written is then wrong.
template <class Lanes, int kM, bool kWhole, class Row>
bool keep_block(const Row& row, size_t start, int count, const Pattern& pattern, int32_t* keys) {
  const int vectors = kWhole ? kM : count / Lanes::kWidth;
  for (int v = 0; v < vectors; ++v) {
    Lanes::store_int(keys + v * Lanes::kWidth, row.keys(start + static_cast<size_t>(v * Lanes::kWidth)));
  }
  for (int v = vectors; v < kM; ++v) Lanes::store_int(keys + v * Lanes::kWidth, Lanes::broadcast_int(0));
  alignas(64) int32_t of_group[Lanes::kWidth];
  Lanes::store_int(of_group, block_threshold<Lanes, kM>(keys, pattern));
  int kept = 0;
  for (int v = 0; v < vectors; ++v) {
    const auto limit = Lanes::template of_groups<kM>(of_group, v);
    const uint32_t bits = Lanes::at_least(Lanes::load_int(keys + v * Lanes::kWidth), limit);
    kept += Lanes::count_bits(bits);
    row.keep(start + static_cast<size_t>(v * Lanes::kWidth), bits);
  }
  return kept == pattern.n * (kWhole ? Lanes::kWidth : count / kM);
}

template <class Lanes, int kM, class Row>
bool keep_block(const Row& row, size_t start, size_t count, const Pattern& pattern, int32_t* keys) {
  if (count == static_cast<size_t>(kM * Lanes::kWidth)) {
    return keep_block<Lanes, kM, true>(row, start, kM * Lanes::kWidth, pattern, keys);
  }
  return count % Lanes::kWidth == 0 &&
         keep_block<Lanes, kM, false>(row, start, static_cast<int>(count), pattern, keys);
}

template <class Lanes, class Row>
bool keep_block(const Row& row, size_t start, size_t count, const Pattern& pattern, int32_t* keys) {
  if constexpr (Lanes::kComparesToBits) {
    switch (pattern.m) {
      case 4:
        return keep_block<Lanes, 4>(row, start, count, pattern, keys);
      case 8:
        return keep_block<Lanes, 8>(row, start, count, pattern, keys);
      case 16:
        return keep_block<Lanes, 16>(row, start, count, pattern, keys);
      case 32:
        return keep_block<Lanes, 32>(row, start, count, pattern, keys);
      default:
        break;
    }
  }
  return false;
}

// `row` is a copy: what it points to is then known not to be written over by what it writes.
template <class Lanes, class Row>
void select_row(const Row row, size_t channels, const Pattern& pattern) {
  constexpr size_t kWidth = Lanes::kWidth;
  const size_t m = static_cast<size_t>(pattern.m);
  const size_t block = kWidth * m;
  alignas(64) int32_t keys[kMaxGroupSize * kWidth];
  KeepBits keep;
  for (size_t start = 0; start < channels; start += block) {
    const size_t count = channels - start < block ? channels - start : block;
    if (keep_block<Lanes>(row, start, count, pattern, keys)) continue;
    const size_t end = start + count;
    size_t i = start;
    for (; i + kWidth <= end; i += kWidth) Lanes::store_int(keys + (i - start), row.keys(i));
    for (; i < end; ++i) keys[i - start] = row.key(i);
    for (i = count; i < block; ++i) keys[i] = 0;  // groups that the last block lacks

    select<Lanes>(keys, pattern, keep);

    for (i = start; i + kWidth <= end; i += kWidth) {
      const size_t bit = i - start;
      row.keep(i, static_cast<uint32_t>(keep.words[bit / 64] >> (bit % 64)));
    }
    for (; i < end; ++i) {
      const size_t bit = i - start;
      row.keep_one(i, keep.words[bit / 64] >> (bit % 64) & 1u);
    }
  }
}

template <class Lanes>
void prune(const float* x, const float* score, Shift shift, size_t channels, const Pattern& pattern, float* values) {
  if (shift.vector != nullptr) {
    const VectorShift<Lanes> vector{shift.vector};
    select_row<Lanes>(PrunedRow<Lanes, VectorShift<Lanes>>{x, score, vector, values}, channels, pattern);
  } else {
    const ScalarShift<Lanes> scalar{shift.scalar};
    select_row<Lanes>(PrunedRow<Lanes, ScalarShift<Lanes>>{x, score, scalar, values}, channels, pattern);
  }
}

template <class Lanes>
void keep_mask(const float* scores, size_t channels, const Pattern& pattern, uint8_t* mask) {
  select_row<Lanes>(MaskedRow<Lanes>{scores, mask}, channels, pattern);
}

template <class Lanes, class AnyShift>
void subtract_shifted(const float* x, AnyShift shift, size_t channels, float* z) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) Lanes::store(z + i, shift.lanes(x, i));
  for (; i < channels; ++i) z[i] = shift.one(x, i);
}

template <class Lanes>
void subtract(const float* x, Shift shift, size_t channels, float* z) {
  if (shift.vector != nullptr) {
    subtract_shifted<Lanes>(x, VectorShift<Lanes>{shift.vector}, channels, z);
  } else {
    subtract_shifted<Lanes>(x, ScalarShift<Lanes>{shift.scalar}, channels, z);
  }
}

template <class Lanes>
bool has_nan(const float* v, size_t channels) {
  size_t i = 0;
  bool found = false;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) found |= Lanes::any_nan(Lanes::load(v + i));
  for (; i < channels; ++i) found |= v[i] != v[i];
  return found;
}

// The sum of the lanes, none of which is negative.
template <class Lanes>
size_t total(typename Lanes::Int counts) {
  alignas(64) int32_t at[Lanes::kWidth];
  Lanes::store_int(at, counts);
  size_t all = 0;
  for (const int32_t count : at) all += static_cast<size_t>(count);
  return all;
}

template <class Lanes>
size_t count_below(const float* v, float limit, size_t channels) {
  const auto limits = Lanes::broadcast(limit);
  auto counts = Lanes::broadcast_int(0);
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    counts = Lanes::increment_where(Lanes::less(Lanes::load(v + i), limits), counts);
  }
  size_t rest = 0;
  for (; i < channels; ++i) rest += v[i] < limit ? 1u : 0u;
  return total<Lanes>(counts) + rest;
}

template <class Lanes>
void gather_between(const float* v, float first, float limit, size_t channels, float* found) {
  size_t i = 0;
  if constexpr (Lanes::kCompresses) {
    const auto firsts = Lanes::broadcast(first);
    const auto limits = Lanes::broadcast(limit);
    for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
      found = Lanes::store_between(found, Lanes::load(v + i), firsts, limits);
    }
  }
  for (; i < channels; ++i) {
    *found = v[i];
    // Not &&: a branch would be mispredicted for every second number.
    found += static_cast<size_t>(v[i] >= first) & static_cast<size_t>(!(v[i] >= limit));
  }
}

template <class Lanes>
size_t count_at_least(const int32_t* keys, int32_t limit, size_t channels) {
  const auto limits = Lanes::broadcast_int(limit);
  auto counts = Lanes::broadcast_int(0);
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    counts = Lanes::increment_unless(Lanes::greater(limits, Lanes::load_int(keys + i)), counts);
  }
  size_t rest = 0;
  for (; i < channels; ++i) rest += keys[i] >= limit ? 1u : 0u;
  return total<Lanes>(counts) + rest;
}

template <class Lanes>
void scale(float* values, float factor, size_t channels) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    Lanes::store(values + i, Lanes::mul(Lanes::load(values + i), Lanes::broadcast(factor)));
  }
  for (; i < channels; ++i) values[i] *= factor;
}

// Sums in float64 of kWidth numbers at a time.
template <class Lanes>
struct Sums {
  static constexpr int kParts = Lanes::kWidth / Lanes::kDoubles;
  typename Lanes::Double part[kParts];

  Sums() {
    for (int p = 0; p < kParts; ++p) part[p] = Lanes::broadcast_double(0);
  }
  // Adds each number's term, a function of kDoubles numbers.
  template <class Term>
  void add(const float* v, Term term) {
    for (int p = 0; p < kParts; ++p) part[p] = Lanes::add_double(part[p], term(Lanes::widen(v + p * Lanes::kDoubles)));
  }
  double total() const {
    double at[Lanes::kWidth];
    for (int p = 0; p < kParts; ++p) Lanes::store_double(at + p * Lanes::kDoubles, part[p]);
    for (int count = Lanes::kWidth / 2; count > 0; count /= 2) {
      for (int i = 0; i < count; ++i) at[i] += at[i + count];
    }
    return at[0];
  }
};

template <class Lanes>
double sum(const float* v, size_t channels) {
  Sums<Lanes> sums;
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    sums.add(v + i, [](typename Lanes::Double a) { return a; });
  }
  double rest = 0;
  for (; i < channels; ++i) rest += static_cast<double>(v[i]);
  return sums.total() + rest;
}

template <class Lanes>
double sum_of_squares(const float* v, double mean, size_t channels) {
  const auto center = Lanes::broadcast_double(mean);
  Sums<Lanes> sums;
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    sums.add(v + i, [&](typename Lanes::Double a) {
      const auto difference = Lanes::sub_double(a, center);
      return Lanes::mul_double(difference, difference);
    });
  }
  double rest = 0;
  for (; i < channels; ++i) {
    const double difference = static_cast<double>(v[i]) - mean;
    rest += difference * difference;
  }
  return sums.total() + rest;
}

template <class Lanes>
void widen_float16(const uint16_t* source, size_t channels, float* target) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) Lanes::store(target + i, Lanes::load_half(source + i));
  if (i == channels) return;
  uint16_t last[Lanes::kWidth] = {};
  float widened[Lanes::kWidth];
  for (size_t c = i; c < channels; ++c) last[c - i] = source[c];
  Lanes::store(widened, Lanes::load_half(last));
  for (size_t c = i; c < channels; ++c) target[c] = widened[c - i];
}

template <class Lanes>
void narrow_float16(const float* source, size_t channels, uint16_t* target) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) Lanes::store_half(target + i, Lanes::load(source + i));
  if (i == channels) return;
  float last[Lanes::kWidth] = {};
  uint16_t narrowed[Lanes::kWidth];
  for (size_t c = i; c < channels; ++c) last[c - i] = source[c];
  Lanes::store_half(narrowed, Lanes::load(last));
  for (size_t c = i; c < channels; ++c) target[c] = narrowed[c - i];
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

template <class Lanes>
constexpr RowKernels row_kernels() {
  return {prune<Lanes>,        keep_mask<Lanes>,      subtract<Lanes>,       scale<Lanes>,
          sum<Lanes>,          sum_of_squares<Lanes>, has_nan<Lanes>,        count_below<Lanes>,
          gather_between<Lanes>, count_at_least<Lanes>, widen_float16<Lanes>, narrow_float16<Lanes>,
          widen_bfloat16,      narrow_bfloat16};
}

}  // namespace
}  // namespace nm_export
