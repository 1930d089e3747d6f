// The int8 kernels, written once over a vector class V that multiplies bytes (kDots4 of isa/vector_concept.h). For the
// kernels.cpp of an instruction set.
//
// What rounding is, is said in docs/semantics.md; that integers are exact follows from their size: 64 products of at
// most 127 * 255 are below 2^24. A token's kept rows are taken four at a time, a dot4, where they lie.
#pragma once

#include <string.h>

#include "float_bits.h"
#include "isa/vector_concept.h"
#include "product/int8_kernels.h"
#include "product/prefetch_impl.h"
#include "product/quantized_kernels_impl.h"

namespace nm_export {
namespace {

// Sums of 127 * 255 for each input of a block are integers that float32 holds.
constexpr int kLargestActivation = 127;

// Where the largest value of a group is smaller than this, its reciprocal may overflow.
constexpr float kSmallestLargest = 0x1p-100f;
constexpr int32_t kInfinityBits = 0x7f800000;

// Adding it rounds numbers below 2^22 to integers, which are then the low bits.
constexpr float kRoundToInteger = 0x1.8p23f;

// The largest absolute value. They are compared as integers: a NaN is above infinity.
inline float largest_of(const float* values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const int32_t bits = bits_of(values[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return float_of(static_cast<uint32_t>(largest));
}

inline bool can_be_rounded(float largest) { return largest >= kSmallestLargest && bits_of(largest) < kInfinityBits; }

// The low byte is the rounded value.
inline uint32_t rounded_byte(float value, float reciprocal) {
  return static_cast<uint32_t>(bits_of(value * reciprocal + kRoundToInteger)) & 0xffu;
}

// The kept inputs of one group, from `start` on.
inline WeightRows group_from(const WeightRows& kept, size_t start, size_t group) {
  size_t end = start;
  while (end < kept.count && kept.row[end] / group == kept.row[start] / group) ++end;
  return {kept.row + start, kept.value + start, end - start};
}

// The rounded activations of the kept rows of one group, filled up to whole dot4s with zeros.
struct Int8Group {
  uint32_t dot4[kMostDot4s];
  uint32_t pairs[kMostDot4s][2];  // the bytes of two inputs, twice each
  size_t dot4s;
  size_t first_row;  // among the rows of a call
  float step;
  float sum;
};

// What a call multiplies: the rounded groups of one token in one block of inputs.
struct Int8Rows {
  const uint8_t* row[kBlockInputs + kMostGroups * (kDot4 - 1)];  // at the first output of a call
  Int8Group groups[kMostGroups];
  size_t group_count = 0;

  size_t count() const {
    if (group_count == 0) return 0;
    const Int8Group& last = groups[group_count - 1];
    return last.first_row + last.dot4s * kDot4;
  }
};

template <class Matrix>
void append_group(const Matrix& matrix, const WeightRows& kept, float largest, Int8Rows& rows) {
  const size_t first = rows.count();
  Int8Group& group = rows.groups[rows.group_count];
  group.first_row = first;
  group.dot4s = (kept.count + kDot4 - 1) / kDot4;
  group.step = largest / static_cast<float>(kLargestActivation);
  const float reciprocal = static_cast<float>(kLargestActivation) / largest;
  int32_t sum = 0;
  memset(group.dot4, 0, group.dot4s * sizeof group.dot4[0]);
  for (size_t i = 0; i < group.dot4s * kDot4; ++i) {
    rows.row[first + i] = matrix.row(kept.row[i < kept.count ? i : 0]);
    if (i >= kept.count) continue;
    const uint32_t byte = rounded_byte(kept.value[i], reciprocal);
    group.dot4[i / kDot4] |= byte << (8 * (i % kDot4));
    sum += static_cast<int8_t>(byte);
  }
  for (size_t q = 0; q < group.dot4s; ++q) {
    group.pairs[q][0] = (group.dot4[q] & 0xffffu) * 0x10001u;
    group.pairs[q][1] = (group.dot4[q] >> 16) * 0x10001u;
  }
  group.sum = static_cast<float>(sum);
  ++rows.group_count;
}

// The scales and zero points of each group of a call, from its first output on.
template <class Scale>
struct GroupScales {
  const Scale* scales[kMostGroups];
  const Scale* zero_points[kMostGroups];  // null where all are `zero_point`
  float zero_point;
};

template <class V, size_t kBits, class Scale>
void add_as_float_by(const Weight& weight, size_t first_output, const WeightRows& add, size_t outputs, float* y) {
  const QuantizedMatrix<kBits, Scale> matrix(weight, first_output);
  for (size_t i = 0; i < add.count; ++i) {
    const uint8_t* row = matrix.row(add.row[i]);
    const size_t block = matrix.block_of(add.row[i]);
    const Scale* scales = matrix.scales(block);
    const Scale* zero_points = matrix.zero_points(block);
    for (size_t c = 0; c < outputs; ++c) {
      const float zero_point = zero_points == nullptr ? matrix.zero_point() : V::one(zero_points + c);
      y[c] += add.value[i] * (V::one(scales + c) * (integer_at<kBits>(row, c) - zero_point));
    }
  }
}

template <class V, size_t kBits>
void add_as_float(const Weight& weight, size_t first_output, const WeightRows& add, size_t outputs, float* y) {
  const auto by = weight.half_scales ? add_as_float_by<V, kBits, Float16> : add_as_float_by<V, kBits, float>;
  by(weight, first_output, add, outputs, y);
}

// Some outputs of a vector: all of it, or `count` numbers of it.
template <class V, bool kAll, class Stored>
typename V::Float load_outputs(const Stored* source, size_t count) {
  if constexpr (kAll) {
    static_cast<void>(count);
    return V::load(source);
  } else {
    return V::load_few(source, count);
  }
}

template <class V, bool kAll>
void store_outputs(float* target, size_t count, typename V::Float v) {
  if constexpr (kAll) {
    static_cast<void>(count);
    V::store(target, v);
  } else {
    V::store_few(target, count, v);
  }
}

// y[c] += step * scale[c] * (sum over rows of activation * integer - zero point[c] * sum) for all groups and for the
// outputs of a step of Dot4Sums, or for the first `some` of them; with weights from `offset` bytes and scales from
// `output` on.
template <class V, size_t kBits, bool kAll, class Scale, class Prefetch>
void add_int8_step(const Int8Rows& rows, const uint8_t* const* weights, size_t offset, const GroupScales<Scale>& scales,
                   size_t output, size_t some, float* y, Prefetch& prefetch) {
  using Float = typename V::Float;
  using Sums = typename V::template Dot4Sums<kBits>;
  constexpr size_t kVectors = Sums::kOutputs / V::kWidth;
  const size_t outputs = kAll ? Sums::kOutputs : some;
  Prefetch next = prefetch;
  for (size_t g = 0; g < rows.group_count; ++g) {
    const Int8Group& group = rows.groups[g];
    Sums sums;
    const auto add = [&](size_t q) {
      next.step();
      sums.add(weights + group.first_row + q * kDot4, offset, outputs * kBits / 8, group.dot4[q], group.pairs[q]);
    };
    if constexpr (Sums::kMostAdds >= kMostDot4s) {
      // In one loop: in two, compilers ran out of registers, and four tokens took a sixth longer.
      for (size_t q = 0; q < group.dot4s; ++q) add(q);
      sums.widen();
    } else {
      for (size_t q = 0; q < group.dot4s;) {
        const size_t end = group.dot4s - q < Sums::kMostAdds ? group.dot4s : q + Sums::kMostAdds;
        for (; q < end; ++q) add(q);
        sums.widen();
      }
    }
    typename V::Int integers[kVectors];
    sums.in_order(integers);
    const Float step = V::broadcast(group.step);
    const Float minus_sum = V::broadcast(-group.sum);
    const Scale* zero_points = scales.zero_points[g];
    Float zero_point = V::broadcast(scales.zero_point);
    for (size_t i = 0; i < kVectors; ++i) {
      const size_t first = i * V::kWidth;
      const size_t count = first >= outputs ? 0 : outputs - first < V::kWidth ? outputs - first : V::kWidth;
      if (zero_points != nullptr) zero_point = load_outputs<V, kAll>(zero_points + output + first, count);
      const Float number = V::fma(zero_point, minus_sum, V::to_float(integers[i]));
      const Float scale = V::mul(step, load_outputs<V, kAll>(scales.scales[g] + output + first, count));
      store_outputs<V, kAll>(y + first, count, V::fma(scale, number, load_outputs<V, kAll>(y + first, count)));
    }
  }
  prefetch = next;
}

// The product of one token's kept rows of one block of inputs with some outputs.
template <class V, size_t kBits, class Scale>
class Int8RowProduct {
 public:
  Int8RowProduct(const Weight& weight, size_t first_output, size_t outputs)
      : matrix_(weight, first_output), weight_(weight), first_output_(first_output), outputs_(outputs) {}

  void add(const WeightRows& kept, const WeightRows& next, float* y) {
    WeightRows as_float[kMostGroups];
    size_t as_float_count = 0;
    scales_.zero_point = matrix_.zero_point();
    for (size_t start = 0; start < kept.count;) {
      const WeightRows group = group_from(kept, start, group_size(weight_));
      start += group.count;
      const float largest = largest_of(group.value, group.count);
      if (!can_be_rounded(largest)) {
        as_float[as_float_count++] = group;
        continue;
      }
      const size_t block = matrix_.block_of(group.row[0]);
      scales_.scales[rows_.group_count] = matrix_.scales(block);
      scales_.zero_points[rows_.group_count] = matrix_.zero_points(block);
      append_group(matrix_, group, largest, rows_);
    }
    add_rounded(next, y);
    // Last, as by tiles.
    for (size_t i = 0; i < as_float_count; ++i) {
      add_as_float<V, kBits>(weight_, first_output_, as_float[i], outputs_, y);
    }
  }

 private:
  static constexpr size_t kStep = V::template Dot4Sums<kBits>::kOutputs;
  using Prefetch = RangePrefetchSchedule<NearPrefetch<V>>;

  // The next rows, and the scales and zero points of their blocks.
  size_t list_ranges(const WeightRows& next, PrefetchRange* ranges) const {
    size_t count = 0;
    for (size_t i = 0; i < next.count; ++i) {
      ranges[count++] = prefetch_range(matrix_.row(next.row[i]), outputs_ * kBits / 8);
      const size_t block = matrix_.block_of(next.row[i]);
      if (i > 0 && block == matrix_.block_of(next.row[i - 1])) continue;
      ranges[count++] = prefetch_range(matrix_.scales(block), outputs_ * sizeof(Scale));
      const Scale* zero_points = matrix_.zero_points(block);
      if (zero_points != nullptr) ranges[count++] = prefetch_range(zero_points, outputs_ * sizeof(Scale));
    }
    return count;
  }

  void add_rounded(const WeightRows& next, float* y) {
    PrefetchRange ranges[kBlockInputs + 2 * kMostGroups];
    const size_t count = list_ranges(next, ranges);
    if (rows_.group_count == 0) {
      Prefetch(ranges, count, 1).step();
      return;
    }
    size_t dot4s = 0;
    for (size_t g = 0; g < rows_.group_count; ++g) dot4s += rows_.groups[g].dot4s;
    Prefetch prefetch(ranges, count, (outputs_ + kStep - 1) / kStep * dot4s);
    size_t c = 0;
    for (; c + kStep <= outputs_; c += kStep) {
      add_int8_step<V, kBits, true>(rows_, rows_.row, c * kBits / 8, scales_, c, kStep, y + c, prefetch);
    }
    if (c == outputs_) return;
    if constexpr (V::kLoadsFew) {
      add_int8_step<V, kBits, false>(rows_, rows_.row, c * kBits / 8, scales_, c, outputs_ - c, y + c, prefetch);
    } else {
      add_rest(c, outputs_ - c, y + c, prefetch);
    }
  }

  // From copies that are as long as a step.
  void add_rest(size_t output, size_t count, float* y, Prefetch& prefetch) {
    constexpr size_t kMostRows = sizeof rows_.row / sizeof rows_.row[0];
    uint8_t weights[kMostRows][kStep * kBits / 8];
    const uint8_t* rows[kMostRows];
    Scale numbers[2 * kMostGroups][kStep] = {};
    float sums[kStep] = {};
    for (size_t i = 0; i < rows_.count(); ++i) {
      memset(weights[i], 0, sizeof weights[i]);
      memcpy(weights[i], rows_.row[i] + output * kBits / 8, count * kBits / 8);
      rows[i] = weights[i];
    }
    GroupScales<Scale> scales = scales_;
    for (size_t g = 0; g < rows_.group_count; ++g) {
      memcpy(numbers[2 * g], scales_.scales[g] + output, count * sizeof(Scale));
      scales.scales[g] = numbers[2 * g];
      if (scales_.zero_points[g] == nullptr) continue;
      memcpy(numbers[2 * g + 1], scales_.zero_points[g] + output, count * sizeof(Scale));
      scales.zero_points[g] = numbers[2 * g + 1];
    }
    memcpy(sums, y, count * sizeof(float));
    add_int8_step<V, kBits, true>(rows_, rows, 0, scales, 0, kStep, sums, prefetch);
    memcpy(y, sums, count * sizeof(float));
  }

  const QuantizedMatrix<kBits, Scale> matrix_;
  const Weight& weight_;
  const size_t first_output_;
  const size_t outputs_;
  Int8Rows rows_;
  GroupScales<Scale> scales_;
};

template <class V, size_t kBits>
void add_int8_rows(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                   size_t outputs, float* y) {
  if (weight.half_scales) {
    Int8RowProduct<V, kBits, Float16>(weight, first_output, outputs).add(add, next, y);
  } else {
    Int8RowProduct<V, kBits, float>(weight, first_output, outputs).add(add, next, y);
  }
}

// Of PackedInt8Kernels.
inline void quantize(const WeightRows& kept, size_t first_input, size_t group_size, Int8Activations& activations) {
  memset(&activations, 0, sizeof activations);
  for (size_t start = 0; start < kept.count;) {
    const WeightRows group = group_from(kept, start, group_size);
    start += group.count;
    const size_t g = (group.row[0] - first_input) / group_size;
    const float largest = largest_of(group.value, group.count);
    if (!can_be_rounded(largest)) {
      activations.as_float |= 1u << g;
      continue;
    }
    const float reciprocal = static_cast<float>(kLargestActivation) / largest;
    int32_t sum = 0;
    for (size_t i = 0; i < group.count; ++i) {
      const size_t place = group.row[i] - first_input;
      const uint32_t byte = rounded_byte(group.value[i], reciprocal);
      activations.dot4[place / kDot4] |= byte << (8 * (place % kDot4));
      sum += static_cast<int8_t>(byte);
    }
    activations.step[g] = largest / static_cast<float>(kLargestActivation);
    activations.sum[g] = static_cast<float>(sum);
  }
}

template <class V>
constexpr Int8Kernels int8_kernels(const PackedInt8Kernels* packed) {
  static_assert(V::kDots4, "isa/vector_concept.h");
  return {{add_int8_rows<V, 8>, add_int8_rows<V, 4>}, {add_as_float<V, 8>, add_as_float<V, 4>}, packed};
}

}  // namespace
}  // namespace nm_export
