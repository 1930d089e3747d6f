// The integer kernels, written over a class `Dots` that every instruction set defines.
#pragma once

#include <string.h>

#include "code_kernels_impl.h"
#include "float_bits.h"
#include "integer_kernels.h"

namespace nm_export {
namespace {

// Sums of 127 * 255 for each channel of a block are integers that float32 holds.
constexpr int kLargestValue = 127;

// Where the largest value of a group is smaller than this, its reciprocal may overflow.
constexpr float kSmallestLargest = 0x1p-100f;
constexpr int32_t kInfinityBits = 0x7f800000;

// Adding it rounds numbers below 2^22 to integers, which are then the low bits.
constexpr float kRounder = 0x1.8p23f;

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
  return static_cast<uint32_t>(bits_of(value * reciprocal + kRounder)) & 0xffu;
}

// The kept channels of one group: those from `start` on, up to `end`.
struct GroupRange {
  size_t start;
  size_t end;
};

inline GroupRange next_group(const Rows& kept, size_t start, size_t group) {
  size_t end = start;
  while (end < kept.count && kept.row[end] / group == kept.row[start] / group) ++end;
  return {start, end};
}

// The rows of one group with their rounded values, filled up to whole quads with rows of value 0.
struct RoundedGroup {
  uint32_t quads[kMostQuads];
  uint32_t pairs[2 * kMostQuads];  // the bytes of two channels, twice each
  size_t quad_count;
  size_t first_row;  // among the rows of a call
  float step;
  float sum;
};

// What a call multiplies: the rounded groups of one token in one block of channels.
struct RoundedRows {
  const uint8_t* codes[kBlockChannels + kMostGroups * (kQuad - 1)];  // of each row, at the first column
  RoundedGroup groups[kMostGroups];
  size_t group_count;
};

template <class Matrix>
void append_group(const Matrix& matrix, const Rows& kept, float largest, RoundedRows& rows) {
  RoundedGroup& group = rows.groups[rows.group_count];
  const size_t first = rows.group_count == 0 ? 0 : (&group - 1)->first_row + (&group - 1)->quad_count * kQuad;
  group.first_row = first;
  group.quad_count = (kept.count + kQuad - 1) / kQuad;
  group.step = largest / static_cast<float>(kLargestValue);
  const float reciprocal = static_cast<float>(kLargestValue) / largest;
  int32_t sum = 0;
  memset(group.quads, 0, group.quad_count * sizeof group.quads[0]);
  for (size_t i = 0; i < group.quad_count * kQuad; ++i) {
    rows.codes[first + i] = matrix.row(kept.row[i < kept.count ? i : 0]);
    if (i >= kept.count) continue;
    const uint32_t byte = rounded_byte(kept.value[i], reciprocal);
    group.quads[i / kQuad] |= byte << (8 * (i % kQuad));
    sum += static_cast<int8_t>(byte);
  }
  for (size_t q = 0; q < group.quad_count; ++q) {
    group.pairs[2 * q] = (group.quads[q] & 0xffffu) * 0x10001u;
    group.pairs[2 * q + 1] = (group.quads[q] >> 16) * 0x10001u;
  }
  group.sum = static_cast<float>(sum);
  ++rows.group_count;
}

// What is prefetched of the next rows.
struct Piece {
  const char* at;
  size_t lines;
};

// Prefetches pieces one line after the other, evenly over the steps of a call. Loops work with a copy of it: kept in
// registers it takes a cycle for each line, and in memory eight.
template <class Dots>
class PrefetchSteps {
 public:
  PrefetchSteps(const Piece* pieces, size_t count, size_t steps) : next_(pieces), end_(pieces + count) {
    size_t lines = 0;
    for (size_t i = 0; i < count; ++i) lines += pieces[i].lines;
    per_step_ = (lines + steps - 1) / steps;
  }
  void step() {
    for (size_t i = 0; i < per_step_; ++i) {
      if (lines_ == 0) {
        if (next_ == end_) return;
        at_ = next_->at;
        lines_ = next_->lines;
        ++next_;
      }
      Dots::prefetch(at_);
      at_ += kCacheLine;
      --lines_;
    }
  }

 private:
  const char* at_ = nullptr;
  size_t lines_ = 0;
  const Piece* next_;
  const Piece* end_;
  size_t per_step_;
};

inline Piece piece_of(const void* at, size_t bytes) {
  const auto* first = static_cast<const char*>(at);
  first -= reinterpret_cast<uintptr_t>(first) % kCacheLine;
  const auto* end = static_cast<const char*>(at) + bytes;
  return {first, (static_cast<size_t>(end - first) + kCacheLine - 1) / kCacheLine};
}

// The scales and zero points of each group of a call, from its first column on.
template <class Scale>
struct GroupScales {
  const Scale* scales[kMostGroups];
  const Scale* zero_points[kMostGroups];  // null where all are `zero_point`
  float zero_point;
};

template <class Dots, size_t kBits, class Scale>
void add_unrounded_by(const Weight& weight, size_t first_column, const Rows& add, size_t columns, float* y) {
  const CodeMatrix<kBits, Scale> matrix(weight, first_column);
  for (size_t i = 0; i < add.count; ++i) {
    const uint8_t* codes = matrix.row(add.row[i]);
    const size_t block = matrix.block_of(add.row[i]);
    const Scale* scales = matrix.scales(block);
    const Scale* zero_points = matrix.zero_points(block);
    for (size_t c = 0; c < columns; ++c) {
      const float zero_point = zero_points == nullptr ? matrix.zero_point() : Dots::one(zero_points + c);
      y[c] += add.value[i] * (Dots::one(scales + c) * (float_code_at<kBits>(codes, c) - zero_point));
    }
  }
}

template <class Dots, size_t kBits>
void add_unrounded(const Weight& weight, size_t first_column, const Rows& add, size_t columns, float* y) {
  const auto by =
      weight.half_scales ? add_unrounded_by<Dots, kBits, Float16> : add_unrounded_by<Dots, kBits, float>;
  by(weight, first_column, add, columns, y);
}

// Dots has
//
//   kStep      so many columns at a time
//   prefetch   of one cache line
//   one        a number that is stored as float or Float16
//   add        y[c] += step * scale[c] * (sum over rows of value * code - zero point[c] * sum) for all groups and for
//              c < columns <= kStep, with codes from `offset` bytes and scales from `column` on
//   kReadsParts  whether `add` takes fewer columns than kStep, and then touches no others
template <class Dots, size_t kBits, class Scale>
class RoundedProduct {
 public:
  RoundedProduct(const Weight& weight, size_t first_column, size_t columns)
      : matrix_(weight, first_column), group_(weight.block_size < kBlockChannels ? weight.block_size : kBlockChannels),
        weight_(weight), first_column_(first_column), columns_(columns) {}

  void add(const Rows& kept, const Rows& next, float* y) {
    Rows unrounded[kMostGroups];
    size_t unrounded_count = 0;
    rows_.group_count = 0;
    scales_.zero_point = matrix_.zero_point();
    for (size_t start = 0; start < kept.count;) {
      const GroupRange range = next_group(kept, start, group_);
      start = range.end;
      const Rows group{kept.row + range.start, kept.value + range.start, range.end - range.start};
      const float largest = largest_of(group.value, group.count);
      if (!can_be_rounded(largest)) {
        unrounded[unrounded_count++] = group;
        continue;
      }
      const size_t block = matrix_.block_of(group.row[0]);
      scales_.scales[rows_.group_count] = matrix_.scales(block);
      scales_.zero_points[rows_.group_count] = matrix_.zero_points(block);
      append_group(matrix_, group, largest, rows_);
    }
    add_columns(next, y);
    // Last, as by tiles.
    for (size_t i = 0; i < unrounded_count; ++i) {
      add_unrounded<Dots, kBits>(weight_, first_column_, unrounded[i], columns_, y);
    }
  }

 private:
  static constexpr size_t kStep = Dots::kStep;

  // The codes of the next rows, and the scales and zero points of their blocks.
  size_t list_pieces(const Rows& next, Piece* pieces) const {
    size_t count = 0;
    for (size_t i = 0; i < next.count; ++i) {
      pieces[count++] = piece_of(matrix_.row(next.row[i]), columns_ * kBits / 8);
      const size_t block = matrix_.block_of(next.row[i]);
      if (i > 0 && block == matrix_.block_of(next.row[i - 1])) continue;
      pieces[count++] = piece_of(matrix_.scales(block), columns_ * sizeof(Scale));
      const Scale* zero_points = matrix_.zero_points(block);
      if (zero_points != nullptr) pieces[count++] = piece_of(zero_points, columns_ * sizeof(Scale));
    }
    return count;
  }

  void add_columns(const Rows& next, float* y) {
    Piece pieces[kBlockChannels + 2 * kMostGroups];
    const size_t count = list_pieces(next, pieces);
    if (rows_.group_count == 0) {
      PrefetchSteps<Dots>(pieces, count, 1).step();
      return;
    }
    size_t quads = 0;
    for (size_t g = 0; g < rows_.group_count; ++g) quads += rows_.groups[g].quad_count;
    PrefetchSteps<Dots> prefetch(pieces, count, (columns_ + kStep - 1) / kStep * quads);
    size_t c = 0;
    for (; c + kStep <= columns_; c += kStep) {
      Dots::template add<Scale>(rows_, rows_.codes, c * kBits / 8, scales_, c, kStep, y + c, prefetch);
    }
    if (c == columns_) return;
    if (Dots::kReadsParts) {
      Dots::template add<Scale>(rows_, rows_.codes, c * kBits / 8, scales_, c, columns_ - c, y + c, prefetch);
    } else {
      add_rest(c, columns_ - c, y + c, prefetch);
    }
  }

  // From copies that are as long as a step.
  void add_rest(size_t column, size_t count, float* y, PrefetchSteps<Dots>& prefetch) {
    constexpr size_t kMostRows = sizeof rows_.codes / sizeof rows_.codes[0];
    uint8_t codes[kMostRows][kStep * kBits / 8];
    const uint8_t* rows[kMostRows];
    Scale numbers[2 * kMostGroups][kStep] = {};
    float sums[kStep] = {};
    const RoundedGroup& last = rows_.groups[rows_.group_count - 1];
    for (size_t i = 0; i < last.first_row + last.quad_count * kQuad; ++i) {
      memset(codes[i], 0, sizeof codes[i]);
      memcpy(codes[i], rows_.codes[i] + column * kBits / 8, count * kBits / 8);
      rows[i] = codes[i];
    }
    GroupScales<Scale> scales = scales_;
    for (size_t g = 0; g < rows_.group_count; ++g) {
      memcpy(numbers[2 * g], scales_.scales[g] + column, count * sizeof(Scale));
      scales.scales[g] = numbers[2 * g];
      if (scales_.zero_points[g] == nullptr) continue;
      memcpy(numbers[2 * g + 1], scales_.zero_points[g] + column, count * sizeof(Scale));
      scales.zero_points[g] = numbers[2 * g + 1];
    }
    memcpy(sums, y, count * sizeof(float));
    Dots::template add<Scale>(rows_, rows, 0, scales, 0, kStep, sums, prefetch);
    memcpy(y, sums, count * sizeof(float));
  }

  const CodeMatrix<kBits, Scale> matrix_;
  const size_t group_;
  const Weight& weight_;
  const size_t first_column_;
  const size_t columns_;
  RoundedRows rows_;
  GroupScales<Scale> scales_;
};

template <class Dots, size_t kBits>
void add_rounded_rows(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y) {
  if (weight.half_scales) {
    RoundedProduct<Dots, kBits, Float16>(weight, first_column, columns).add(add, next, y);
  } else {
    RoundedProduct<Dots, kBits, float>(weight, first_column, columns).add(add, next, y);
  }
}

// Rounds one token's values of one block of channels for tiles.
inline void round_for_tiles(const Rows& kept, size_t first_channel, size_t group, RoundedValues& rounded) {
  memset(&rounded, 0, sizeof rounded);
  for (size_t start = 0; start < kept.count;) {
    const GroupRange range = next_group(kept, start, group);
    start = range.end;
    const size_t g = (kept.row[range.start] - first_channel) / group;
    const float largest = largest_of(kept.value + range.start, range.end - range.start);
    if (!can_be_rounded(largest)) {
      rounded.unrounded |= 1u << g;
      continue;
    }
    const float reciprocal = static_cast<float>(kLargestValue) / largest;
    int32_t sum = 0;
    for (size_t i = range.start; i < range.end; ++i) {
      const size_t channel = kept.row[i] - first_channel;
      const uint32_t byte = rounded_byte(kept.value[i], reciprocal);
      rounded.quads[channel / kQuad] |= byte << (8 * (channel % kQuad));
      sum += static_cast<int8_t>(byte);
    }
    rounded.step[g] = largest / static_cast<float>(kLargestValue);
    rounded.sum[g] = static_cast<float>(sum);
  }
}

// Plain C++, for compilers to turn into vectors.
template <class Numbers, size_t kBits>
struct PlainDots : Numbers {
  static constexpr size_t kStep = 16;
  static constexpr bool kReadsParts = false;
  template <class Scale, class Prefetch>
  static void add(const RoundedRows& rows, const uint8_t* const* codes, size_t offset, const GroupScales<Scale>& scales,
                  size_t column, size_t, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    for (size_t g = 0; g < rows.group_count; ++g) {
      const RoundedGroup& group = rows.groups[g];
      int32_t integers[kStep] = {};
      for (size_t i = 0; i < group.quad_count * kQuad; ++i) {
        if (i % kQuad == 0) next.step();
        const uint8_t* row = codes[group.first_row + i] + offset;
        const auto value = static_cast<int8_t>(group.quads[i / kQuad] >> (8 * (i % kQuad)) & 0xffu);
        for (size_t c = 0; c < kStep; ++c) integers[c] += value * code_at<kBits>(row, c);
      }
      for (size_t c = 0; c < kStep; ++c) {
        const Scale* zero_points = scales.zero_points[g];
        const float zero_point = zero_points == nullptr ? scales.zero_point : Numbers::one(zero_points + column + c);
        const float sum = static_cast<float>(integers[c]) - zero_point * group.sum;
        y[c] += group.step * Numbers::one(scales.scales[g] + column + c) * sum;
      }
    }
    prefetch = next;
  }
};

template <template <size_t> class Dots>
constexpr IntegerKernels integer_kernels(const IntegerTileKernels* tiles) {
  return {{add_rounded_rows<Dots<8>, 8>, add_rounded_rows<Dots<4>, 4>},
          {add_unrounded<Dots<8>, 8>, add_unrounded<Dots<4>, 4>},
          tiles};
}

}  // namespace
}  // namespace nm_export
