// Counts and sums over a token, for the median, the mean, the variance and for groups of any size. Part of
// selection_kernels_impl.h.
#pragma once

#include "selection/selection_kernels.h"

namespace nm_export {
namespace {

template <class V>
bool has_nan(const float* v, size_t channels) {
  size_t i = 0;
  bool found = false;
  for (; i + V::kWidth <= channels; i += V::kWidth) found |= V::any_nan(V::load(v + i));
  for (; i < channels; ++i) found |= v[i] != v[i];
  return found;
}

// The sum of the lanes, none of which is negative.
template <class V>
size_t total(typename V::Int counts) {
  alignas(64) int32_t at[V::kWidth];
  V::store_int(at, counts);
  size_t all = 0;
  for (const int32_t count : at) all += static_cast<size_t>(count);
  return all;
}

template <class V>
size_t count_below(const float* v, float limit, size_t channels) {
  const auto limits = V::broadcast(limit);
  auto counts = V::broadcast_int(0);
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) {
    counts = V::increment_where(V::less(V::load(v + i), limits), counts);
  }
  size_t rest = 0;
  for (; i < channels; ++i) rest += v[i] < limit ? 1u : 0u;
  return total<V>(counts) + rest;
}

template <class V>
void gather_between(const float* v, float first, float limit, size_t channels, float* found) {
  size_t i = 0;
  if constexpr (V::kCompresses) {
    const auto firsts = V::broadcast(first);
    const auto limits = V::broadcast(limit);
    for (; i + V::kWidth <= channels; i += V::kWidth) {
      const auto v_i = V::load(v + i);
      const uint32_t between = V::at_least_and_below(v_i, firsts, limits);
      V::store(found, V::compress(between, v_i));
      found += V::count_bits(between);
    }
  }
  for (; i < channels; ++i) {
    *found = v[i];
    // Not &&: a branch would be mispredicted for every second number.
    found += static_cast<size_t>(v[i] >= first) & static_cast<size_t>(!(v[i] >= limit));
  }
}

template <class V>
size_t count_at_least(const int32_t* keys, int32_t limit, size_t channels) {
  const auto limits = V::broadcast_int(limit);
  auto counts = V::broadcast_int(0);
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) {
    counts = V::increment_unless(V::greater(limits, V::load_int(keys + i)), counts);
  }
  size_t rest = 0;
  for (; i < channels; ++i) rest += keys[i] >= limit ? 1u : 0u;
  return total<V>(counts) + rest;
}

template <class V>
void scale(float* values, float factor, size_t channels) {
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) {
    V::store(values + i, V::mul(V::load(values + i), V::broadcast(factor)));
  }
  for (; i < channels; ++i) values[i] *= factor;
}

// Sums in float64 of kWidth numbers at a time.
template <class V>
struct Sums {
  static constexpr size_t kParts = V::kWidth / V::kDoubles;
  typename V::Double part[kParts];

  Sums() {
    for (size_t p = 0; p < kParts; ++p) part[p] = V::broadcast_double(0);
  }
  // Adds each number's term, a function of kDoubles numbers.
  template <class Term>
  void add(const float* v, Term term) {
    for (size_t p = 0; p < kParts; ++p) part[p] = V::add_double(part[p], term(V::widen(v + p * V::kDoubles)));
  }
  double total() const {
    double at[V::kWidth];
    for (size_t p = 0; p < kParts; ++p) V::store_double(at + p * V::kDoubles, part[p]);
    for (size_t count = V::kWidth / 2; count > 0; count /= 2) {
      for (size_t i = 0; i < count; ++i) at[i] += at[i + count];
    }
    return at[0];
  }
};

template <class V>
double sum(const float* v, size_t channels) {
  Sums<V> sums;
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) {
    sums.add(v + i, [](typename V::Double a) { return a; });
  }
  double rest = 0;
  for (; i < channels; ++i) rest += static_cast<double>(v[i]);
  return sums.total() + rest;
}

template <class V>
double sum_of_squares(const float* v, double mean, size_t channels) {
  const auto center = V::broadcast_double(mean);
  Sums<V> sums;
  size_t i = 0;
  for (; i + V::kWidth <= channels; i += V::kWidth) {
    sums.add(v + i, [&](typename V::Double a) {
      const auto difference = V::sub_double(a, center);
      return V::mul_double(difference, difference);
    });
  }
  double rest = 0;
  for (; i < channels; ++i) {
    const double difference = static_cast<double>(v[i]) - mean;
    rest += difference * difference;
  }
  return sums.total() + rest;
}

}  // namespace
}  // namespace nm_export
