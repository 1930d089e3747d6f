// The selection kernels, written once over a vector class V (isa/vector_concept.h). For the kernels.cpp of an
// instruction set, which includes this after its vector.h.
//
// Selection works on blocks of kWidth groups. The scores of a block become integer keys, which are transposed; a
// selection network then finds the n-th largest key of all groups at once. With 2:4 and a width of 4:
//
//   keys as they lie, group after group       transposed: lane g of channel[c] is channel c of group g
//     a0 a1 a2 a3                               channel[0] = a0 b0 c0 d0
//     b0 b1 b2 b3                               channel[1] = a1 b1 c1 d1      max and min of whole vectors
//     c0 c1 c2 c3                               channel[2] = a2 b2 c2 d2      are the steps of the network
//     d0 d1 d2 d3                               channel[3] = a3 b3 c3 d3
//
//   threshold = 2nd(a) 2nd(b) 2nd(c) 2nd(d)     one number for each group
//
// A group keeps the keys that are not below its threshold; where equal keys make these too many, the last ones go. What
// is kept becomes bits, one string for the block in the order of the channels (KeepBits), and these mask the store:
//
//   bit   0  1  2  3   4  5  6  7   ...
//         a0 a1 a2 a3  b0 b1 b2 b3  ...
//
// Where comparisons give bits (kComparesToBits) the keys are compared where they lie instead, and the transposed ones
// are looked at only where some were equal.
//
// No branch depends on data, but that on equal keys. Nothing here checks arguments: selection/selection_kernels.h says
// what they are. Everything is in an unnamed namespace: each instruction set needs a copy of its own.
#pragma once

#include <utility>  // types only

#include "isa/vector_concept.h"
#include "selection/conversions_impl.h"
#include "selection/score_key.h"
#include "selection/selection_kernels.h"
#include "selection/statistics_impl.h"

namespace nm_export {
namespace {

// For arithmetic with other ints.
template <class V>
constexpr int width() {
  return static_cast<int>(V::kWidth);
}

// z = x - shift, where the shift is a vector of channels or one number.
template <class V>
struct VectorShift {
  const float* vector;
  typename V::Float vector_at(const float* x, size_t i) const { return V::sub(V::load(x + i), V::load(vector + i)); }
  float one(const float* x, size_t i) const { return x[i] - vector[i]; }
};

template <class V>
struct ScalarShift {
  float scalar;
  typename V::Float vector_at(const float* x, size_t i) const { return V::sub(V::load(x + i), V::broadcast(scalar)); }
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

template <class V, int kHigh, int kLow>
inline void compare_exchange(typename V::Int* sorted) {
  const auto a = sorted[kHigh];
  const auto b = sorted[kLow];
  sorted[kHigh] = V::max_int(a, b);
  sorted[kLow] = V::min_int(a, b);
}

template <class V, int kN, int kM, size_t... kStep>
typename V::Int unrolled_threshold(const typename V::Int* channel, std::index_sequence<kStep...>) {
  using Network = FixedNetwork<kN, kM>;
  typename V::Int sorted[kM];
  for (int c = 0; c < kM; ++c) sorted[c] = channel[c];
  (compare_exchange<V, Network::value.steps[kStep].high, Network::value.steps[kStep].low>(sorted), ...);
  return sorted[kN - 1];
}

template <class V, int kN, int kM>
typename V::Int unrolled_threshold(const typename V::Int* channel) {
  return unrolled_threshold<V, kN, kM>(channel, std::make_index_sequence<FixedNetwork<kN, kM>::value.size>());
}

template <class V>
typename V::Int any_threshold(const typename V::Int* channel, int m, const Pattern& pattern) {
  typename V::Int sorted[kMaxGroupSize];
  for (int c = 0; c < m; ++c) sorted[c] = channel[c];
  for (int i = 0; i < pattern.network.size; ++i) {
    const Comparator step = pattern.network.steps[i];
    const auto a = sorted[step.high];
    const auto b = sorted[step.low];
    sorted[step.high] = V::max_int(a, b);
    sorted[step.low] = V::min_int(a, b);
  }
  return sorted[pattern.n - 1];
}

// Which of the channels [first, last) every group keeps, as bits counted from `first`: those whose key is not below
// the threshold. `excess`, -n at first, ends as the number of keys that are kept beyond n.
template <class V>
typename V::Int keep_at_least(const typename V::Int* channel, int first, int last, typename V::Int threshold,
                              typename V::Int& excess) {
  auto bits = V::broadcast_int(0);
  for (int c = first; c < last; ++c) {
    const auto below = V::greater(threshold, channel[c]);
    bits = V::or_unless(below, bits, V::broadcast_int(static_cast<int32_t>(1u << (c - first))));
    excess = V::increment_unless(below, excess);
  }
  return bits;
}

// Takes the last of the equal keys away until there is no excess.
template <class V>
typename V::Int drop_last_equals(const typename V::Int* channel, int first, int last, typename V::Int threshold,
                                 typename V::Int bits, typename V::Int& excess) {
  const auto zero = V::broadcast_int(0);
  for (int c = last - 1; c >= first; --c) {
    const auto drop = V::both(V::equal(threshold, channel[c]), V::greater(excess, zero));
    bits = V::clear_where(drop, bits, V::broadcast_int(static_cast<int32_t>(1u << (c - first))));
    excess = V::decrement_where(drop, excess);
  }
  return bits;
}

// The keeps of one block, for m = 4, 8, 16 or 32. `keys` holds kWidth groups one after the other.
template <class V, int kM>
void select_block(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  using Int = typename V::Int;
  Int channel[kM];  // lane g of channel[c] is channel c of group g
  for (int c = 0; c < kM; c += 4) V::load_four_channels(keys + c, kM, channel + c);
  const Int threshold =
      pattern.n * 2 == kM ? unrolled_threshold<V, kM / 2, kM>(channel) : any_threshold<V>(channel, kM, pattern);
  Int excess = V::broadcast_int(-pattern.n);
  Int bits = keep_at_least<V>(channel, 0, kM, threshold, excess);
  if (V::any_positive(excess)) bits = drop_last_equals<V>(channel, 0, kM, threshold, bits, excess);

  alignas(64) uint32_t group_bits[V::kWidth];
  V::store_int(reinterpret_cast<int32_t*>(group_bits), bits);
  pack<kM, width<V>()>(group_bits, keep);
}

// The same for any m.
template <class V>
void select_any_block(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  using Int = typename V::Int;
  const int m = pattern.m;
  const int half = m < 32 ? m : 32;
  Int channel[kMaxGroupSize];
  if (m % 4 == 0) {
    for (int c = 0; c < m; c += 4) V::load_four_channels(keys + c, m, channel + c);
  } else {
    for (int c = 0; c < m; ++c) channel[c] = V::load_channel(keys + c, m);
  }
  const Int threshold = any_threshold<V>(channel, m, pattern);
  Int excess = V::broadcast_int(-pattern.n);
  Int low = keep_at_least<V>(channel, 0, half, threshold, excess);
  Int high = keep_at_least<V>(channel, half, m, threshold, excess);
  if (V::any_positive(excess)) {
    high = drop_last_equals<V>(channel, half, m, threshold, high, excess);
    low = drop_last_equals<V>(channel, 0, half, threshold, low, excess);
  }

  alignas(64) uint32_t low_bits[V::kWidth];
  alignas(64) uint32_t high_bits[V::kWidth];
  V::store_int(reinterpret_cast<int32_t*>(low_bits), low);
  V::store_int(reinterpret_cast<int32_t*>(high_bits), high);
  uint64_t bits[V::kWidth];
  for (size_t g = 0; g < V::kWidth; ++g) bits[g] = low_bits[g] | static_cast<uint64_t>(high_bits[g]) << 32;
  pack_any(bits, width<V>(), m, keep);
}

// The keeps of the kWidth groups whose keys lie one after the other at `keys`.
template <class V>
void select(const int32_t* keys, const Pattern& pattern, KeepBits& keep) {
  switch (pattern.m) {
    case 4:
      return select_block<V, 4>(keys, pattern, keep);
    case 8:
      return select_block<V, 8>(keys, pattern, keep);
    case 16:
      return select_block<V, 16>(keys, pattern, keep);
    case 32:
      return select_block<V, 32>(keys, pattern, keep);
    default:
      return select_any_block<V>(keys, pattern, keep);
  }
}

// What a selection reads and writes, for the two uses of it: keys of the channels from i on, and what becomes of them.
template <class V, class AnyShift>
struct PrunedRow {
  const float* x;
  const float* score;
  AnyShift shift;
  float* values;

  typename V::Int keys(size_t i) const { return V::key(shift.vector_at(x, i), V::load(score + i)); }
  int32_t key(size_t i) const { return key_of(shift.one(x, i), score[i]); }
  void keep(size_t i, uint32_t bits) const { V::store(values + i, V::where(bits, shift.vector_at(x, i))); }
  void keep_one(size_t i, bool kept) const { values[i] = kept ? shift.one(x, i) : 0.0f; }
};

template <class V>
struct MaskedRow {
  const float* scores;
  uint8_t* mask;

  typename V::Int keys(size_t i) const { return V::key(V::load(scores + i), V::broadcast(1.0f)); }
  int32_t key(size_t i) const { return key_of(scores[i], 1.0f); }
  void keep(size_t i, uint32_t bits) const {
    for (size_t lane = 0; lane < V::kWidth; ++lane) mask[i + lane] = bits >> lane & 1u;
  }
  void keep_one(size_t i, bool kept) const { mask[i] = kept; }
};

// Of each group of a block, the lowest key that is kept.
template <class V, int kN, int kM>
typename V::Int fixed_threshold(const int32_t* keys) {
  typename V::Int channel[kM];
  for (int c = 0; c < kM; c += 4) V::load_four_channels(keys + c, kM, channel + c);
  return unrolled_threshold<V, kN, kM>(channel);
}

template <class V, int kM, size_t... kN>
typename V::Int tabled_threshold(const int32_t* keys, int n, std::index_sequence<kN...>) {
  using Threshold = typename V::Int (*)(const int32_t*);
  constexpr Threshold kOf[] = {fixed_threshold<V, static_cast<int>(kN) + 1, kM>...};
  return kOf[n - 1](keys);
}

// For m = 4, 8, 16 or 32; only of groups of 32, all the networks would be much code.
template <class V, int kM>
typename V::Int block_threshold(const int32_t* keys, const Pattern& pattern) {
  if (pattern.n * 2 == kM) return fixed_threshold<V, kM / 2, kM>(keys);
  if constexpr (kM <= 16) {
    return tabled_threshold<V, kM>(keys, pattern.n, std::make_index_sequence<kM - 1>());
  } else {
    typename V::Int channel[kM];
    for (int c = 0; c < kM; c += 4) V::load_four_channels(keys + c, kM, channel + c);
    return any_threshold<V>(channel, kM, pattern);
  }
}

// One block, or the whole groups of a last one, without the detour over KeepBits, for an instruction set that compares
// to bits: keeps what is not below the threshold of its group. False where a group keeps more than n so; what was
// written is then wrong.
template <class V, int kM, bool kWhole, class Row>
bool keep_block(const Row& row, size_t start, int count, const Pattern& pattern, int32_t* keys) {
  const int vectors = kWhole ? kM : count / width<V>();
  for (int v = 0; v < vectors; ++v) {
    V::store_int(keys + v * width<V>(), row.keys(start + static_cast<size_t>(v * width<V>())));
  }
  for (int v = vectors; v < kM; ++v) V::store_int(keys + v * width<V>(), V::broadcast_int(0));
  alignas(64) int32_t of_group[V::kWidth];
  V::store_int(of_group, block_threshold<V, kM>(keys, pattern));
  int kept = 0;
  for (int v = 0; v < vectors; ++v) {
    const auto limit = V::template of_groups<kM>(of_group, v);
    const uint32_t bits = V::at_least(V::load_int(keys + v * width<V>()), limit);
    kept += V::count_bits(bits);
    row.keep(start + static_cast<size_t>(v * width<V>()), bits);
  }
  return kept == pattern.n * (kWhole ? width<V>() : count / kM);
}

template <class V, int kM, class Row>
bool keep_block(const Row& row, size_t start, size_t count, const Pattern& pattern, int32_t* keys) {
  if (count == kM * V::kWidth) {
    return keep_block<V, kM, true>(row, start, kM * width<V>(), pattern, keys);
  }
  return count % V::kWidth == 0 && keep_block<V, kM, false>(row, start, static_cast<int>(count), pattern, keys);
}

template <class V, class Row>
bool keep_block(const Row& row, size_t start, size_t count, const Pattern& pattern, int32_t* keys) {
  if constexpr (V::kComparesToBits) {
    switch (pattern.m) {
      case 4:
        return keep_block<V, 4>(row, start, count, pattern, keys);
      case 8:
        return keep_block<V, 8>(row, start, count, pattern, keys);
      case 16:
        return keep_block<V, 16>(row, start, count, pattern, keys);
      case 32:
        return keep_block<V, 32>(row, start, count, pattern, keys);
      default:
        break;
    }
  }
  return false;
}

// `row` is a copy: what it points to is then known not to be written over by what it writes.
template <class V, class Row>
void select_row(const Row row, size_t channels, const Pattern& pattern) {
  constexpr size_t kWidth = V::kWidth;
  const size_t m = static_cast<size_t>(pattern.m);
  const size_t block = kWidth * m;
  alignas(64) int32_t keys[kMaxGroupSize * kWidth];
  KeepBits keep;
  for (size_t start = 0; start < channels; start += block) {
    const size_t count = channels - start < block ? channels - start : block;
    if (keep_block<V>(row, start, count, pattern, keys)) continue;
    const size_t end = start + count;
    size_t i = start;
    for (; i + kWidth <= end; i += kWidth) V::store_int(keys + (i - start), row.keys(i));
    for (; i < end; ++i) keys[i - start] = row.key(i);
    for (i = count; i < block; ++i) keys[i] = 0;  // groups that the last block lacks

    select<V>(keys, pattern, keep);

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

template <class V>
void prune(const float* x, const float* score, Shift shift, size_t channels, const Pattern& pattern, float* values) {
  if (shift.vector != nullptr) {
    const VectorShift<V> vector{shift.vector};
    select_row<V>(PrunedRow<V, VectorShift<V>>{x, score, vector, values}, channels, pattern);
  } else {
    const ScalarShift<V> scalar{shift.scalar};
    select_row<V>(PrunedRow<V, ScalarShift<V>>{x, score, scalar, values}, channels, pattern);
  }
}

template <class V>
void keep_mask(const float* scores, size_t channels, const Pattern& pattern, uint8_t* mask) {
  select_row<V>(MaskedRow<V>{scores, mask}, channels, pattern);
}

template <class V, class AnyShift>
void subtract_shifted(const float* x, AnyShift shift, size_t channels, float* z) {
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) V::store(z + i, shift.vector_at(x, i));
  for (; i < channels; ++i) z[i] = shift.one(x, i);
}

template <class V>
void subtract(const float* x, Shift shift, size_t channels, float* z) {
  if (shift.vector != nullptr) {
    subtract_shifted<V>(x, VectorShift<V>{shift.vector}, channels, z);
  } else {
    subtract_shifted<V>(x, ScalarShift<V>{shift.scalar}, channels, z);
  }
}

template <class V>
constexpr SelectionKernels selection_kernels() {
  static_assert(is_selection_vector<V>(), "isa/vector_concept.h");
  return {prune<V>,          keep_mask<V>,      subtract<V>,    scale<V>,          sum<V>,
          sum_of_squares<V>, has_nan<V>,        count_below<V>, gather_between<V>, count_at_least<V>,
          widen_float16<V>,  narrow_float16<V>, widen_bfloat16, narrow_bfloat16};
}

}  // namespace
}  // namespace nm_export
