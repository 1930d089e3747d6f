// The integer kernels, written over a class `Dots` that every instruction set defines.
//
// Codes are taken without sign: a signed one is 2^(bits - 1) more, and so is its zero point.
#pragma once

#include <string.h>

#include "code_kernels_impl.h"
#include "float_bits.h"
#include "integer_kernels.h"

namespace nm_export {
namespace {

// Sums of 127 * 255 for each channel of a block are integers that float32 holds.
constexpr int kLargestValue = 127;

// Where the largest product of a block is smaller than this, its reciprocal may overflow.
constexpr float kSmallestScale = 0x1p-100f;
constexpr int32_t kInfinityBits = 0x7f800000;

// Adding it rounds numbers below 2^22 to integers, which are then the low bits. Of NaN any byte results.
constexpr float kRounder = 0x1.8p23f;

// The rows that are added, filled up to whole quads with rows of value 0.
struct AddedRows {
  const uint8_t* codes[kBlockChannels];  // at the first column of a task
  float value[kBlockChannels];
  size_t block[kBlockChannels];  // that the first column belongs to
  size_t count;
  size_t quads;
};

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

// Copies up to 16 numbers; a call of memcpy would take longer.
template <class Number>
void copy_few(const Number* source, size_t count, Number* target) {
  for (size_t size = kStretchBlocks; size > 0; size /= 2) {
    if ((count & size) == 0) continue;
    for (size_t i = 0; i < size; ++i) target[i] = source[i];
    source += size;
    target += size;
  }
}

// What makes a code unsigned.
template <size_t kBits, bool kSigned>
constexpr int unsigned_shift() {
  return kSigned ? 1 << (kBits - 1) : 0;
}

// The zero points of up to kStretchBlocks blocks, of unsigned codes. What there is room for more becomes arbitrary.
template <size_t kBits, bool kSigned>
void load_zero_points(const void* stored, size_t block, size_t count, int32_t* zero_points) {
  uint8_t codes[kStretchBlocks] = {};
  const auto* bytes = static_cast<const uint8_t*>(stored) + block * kBits / 8;
  if (kBits == 8) {
    copy_few(bytes, count, codes);
  } else {
    const size_t odd = block % 2;
    uint8_t pairs[kStretchBlocks] = {};
    copy_few(bytes, (odd + count + 1) / 2, pairs);
    uint64_t nibbles = 0;
    for (size_t i = 0; i < 8; ++i) nibbles |= static_cast<uint64_t>(pairs[i]) << (8 * i);
    if (odd != 0) nibbles = nibbles >> 4 | static_cast<uint64_t>(pairs[8]) << 60;
    for (size_t b = 0; b < kStretchBlocks; ++b) codes[b] = static_cast<uint8_t>(nibbles >> (4 * b) & 15);
  }
  for (size_t b = 0; b < kStretchBlocks; ++b) zero_points[b] = codes[b] ^ unsigned_shift<kBits, kSigned>();
}

template <size_t kBits, bool kSigned>
class Rounder {
 public:
  Rounder(const Weight& weight, const AddedRows& rows) : weight_(weight), rows_(rows) {}

  // Of the blocks [first, first + count) of a task, 0 < count <= kStretchBlocks.
  void round(size_t first, size_t count, RoundedValues& rounded) {
    const float* scales[kBlockChannels];
    for (size_t i = 0; i < rows_.quads * kQuad; ++i) scales[i] = scales_of(i, first, count);
    float reciprocal[kStretchBlocks];
    find_steps(scales, count, rounded, reciprocal);

    int32_t zero[kStretchBlocks] = {};
    for (size_t g = 0; g < rows_.quads; ++g) {
      uint32_t bytes[kStretchBlocks] = {};
      for (size_t i = 0; i < kQuad; ++i) {
        const float value = rows_.value[g * kQuad + i];
        const float* scale = scales[g * kQuad + i];
        int32_t integer[kStretchBlocks];
        for (size_t b = 0; b < kStretchBlocks; ++b) {
          const uint32_t byte = static_cast<uint32_t>(bits_of(value * scale[b] * reciprocal[b] + kRounder)) & 0xffu;
          integer[b] = static_cast<int8_t>(byte);
          bytes[b] |= byte << (8 * i);
        }
        if (weight_.zero_points == nullptr) {
          for (size_t b = 0; b < kStretchBlocks; ++b) zero[b] += integer[b];
        } else {
          int32_t zero_points[kStretchBlocks];
          load_zero_points<kBits, kSigned>(weight_.zero_points, rows_.block[g * kQuad + i] + first, count, zero_points);
          for (size_t b = 0; b < kStretchBlocks; ++b) zero[b] += integer[b] * zero_points[b];
        }
      }
      memcpy(rounded.quads[g], bytes, sizeof bytes);
    }
    const int32_t zero_point = weight_.zero_points == nullptr ? unsigned_shift<kBits, kSigned>() : 1;
    for (size_t b = 0; b < kStretchBlocks; ++b) rounded.zero[b] = zero[b] * zero_point;
  }

 private:
  const float* scales_of(size_t row, size_t first, size_t count) {
    const float* scales = weight_.scales + rows_.block[row] + first;
    if (count == kStretchBlocks) return scales;
    memset(scales_[row], 0, sizeof scales_[row]);
    copy_few(scales, count, scales_[row]);
    return scales_[row];
  }

  // Absolute values are compared as integers: a NaN is above infinity.
  void find_steps(const float* const* scales, size_t count, RoundedValues& rounded, float* reciprocal) const {
    int32_t largest[kStretchBlocks] = {};
    for (size_t i = 0; i < rows_.count; ++i) {
      const float value = rows_.value[i];
      for (size_t b = 0; b < kStretchBlocks; ++b) {
        const int32_t bits = bits_of(value * scales[i][b]) & 0x7fffffff;
        largest[b] = bits > largest[b] ? bits : largest[b];
      }
    }
    uint32_t unrounded = 0;
    for (size_t b = 0; b < kStretchBlocks; ++b) {
      const bool is_good = largest[b] >= bits_of(kSmallestScale) && largest[b] < kInfinityBits;
      const float a = float_of(static_cast<uint32_t>(is_good ? largest[b] : bits_of(1.0f)));
      reciprocal[b] = is_good ? static_cast<float>(kLargestValue) / a : 0.0f;
      rounded.step[b] = is_good ? a / static_cast<float>(kLargestValue) : 0.0f;
      unrounded |= (is_good || largest[b] == 0 ? 0u : 1u) << b;
    }
    rounded.unrounded = unrounded & ((1u << count) - 1);
  }

  const Weight& weight_;
  const AddedRows& rows_;
  float scales_[kBlockChannels][kStretchBlocks];
};

template <size_t kBits, bool kSigned>
void add_unrounded(const Weight& weight, size_t first_column, const Rows& add, size_t columns, float* y) {
  using Format = CodeFormat<kBits, kSigned, true>;
  for (size_t i = 0; i < add.count; ++i) {
    const size_t row = add.row[i];
    const auto* codes = static_cast<const uint8_t*>(weight.data) + (row * weight.columns + first_column) * kBits / 8;
    const size_t block = row * weight.blocks + first_column / weight.block_size;
    const int zero_point = weight.zero_points == nullptr ? 0 : Format::code(weight.zero_points, block);
    for (size_t c = 0; c < columns; ++c) {
      const auto integer = static_cast<float>(Format::code(codes, c) - zero_point);
      y[c] += add.value[i] * (weight.scales[block] * integer);
    }
  }
}

// Dots has
//
//   Rounder    does what the one above does
//   kStep      so many columns at a time; a step may be of several blocks or of a part of one
//   prefetch   of one cache line
//   add        y[c] += step * (sum over rows of value * code - zero) for c < kStep, with codes from `offset` bytes on,
//              the first of which is of block `block` and, if a block is longer than a step, begins anywhere in it
//   kReadsParts  whether `add` reads no more than `bytes` of the codes of a row; what is missing counts as 0. Otherwise
//              it reads a whole step
template <class Dots, size_t kBits, bool kSigned>
void add_rounded_rows(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y) {
  constexpr size_t kStep = Dots::kStep;
  const auto* codes = static_cast<const uint8_t*>(weight.data);
  const auto at = [&](size_t channel) { return codes + (channel * weight.columns + first_column) * kBits / 8; };
  const auto block_at = [&](size_t channel) { return channel * weight.blocks + first_column / weight.block_size; };
  const size_t blocks = (columns + weight.block_size - 1) / weight.block_size;

  Piece pieces[3 * kBlockChannels];
  size_t count = 0;
  for (size_t i = 0; i < next.count; ++i) {
    const size_t block = block_at(next.row[i]);
    pieces[count++] = piece_of(at(next.row[i]), columns * kBits / 8);
    pieces[count++] = piece_of(weight.scales + block, blocks * sizeof(float));
    if (weight.zero_points == nullptr) continue;
    const auto* zero_points = static_cast<const uint8_t*>(weight.zero_points) + block * kBits / 8;
    pieces[count++] = piece_of(zero_points, (blocks + 1) * kBits / 8);
  }
  if (add.count == 0) {
    PrefetchSteps<Dots>(pieces, count, 1).step();
    return;
  }
  AddedRows rows;
  rows.count = add.count;
  rows.quads = (add.count + kQuad - 1) / kQuad;
  for (size_t i = 0; i < rows.quads * kQuad; ++i) {
    const size_t row = add.row[i < add.count ? i : 0];
    rows.codes[i] = at(row);
    rows.block[i] = block_at(row);
    rows.value[i] = i < add.count ? add.value[i] : 0.0f;
  }

  PrefetchSteps<Dots> prefetch(pieces, count, (columns + kStep - 1) / kStep * rows.quads);

  typename Dots::Rounder rounder(weight, rows);
  RoundedValues rounded;
  const size_t stretch = kStretchBlocks * weight.block_size;
  for (size_t start = 0; start < columns; start += stretch) {
    const size_t end = start + stretch < columns ? start + stretch : columns;
    const size_t first_block = start / weight.block_size;
    rounder.round(first_block, (end - start + weight.block_size - 1) / weight.block_size, rounded);
    size_t c = start;
    for (; c + kStep <= end; c += kStep) {
      Dots::add(rows.codes, c * kBits / 8, kStep * kBits / 8, rows.quads, rounded, c / weight.block_size - first_block,
                weight.block_size, y + c, prefetch);
    }
    if (c < end) {
      float sums[kStep] = {};
      const auto add_tail = [&](const uint8_t* const* from, size_t offset) {
        Dots::add(from, offset, (end - c) * kBits / 8, rows.quads, rounded, c / weight.block_size - first_block,
                  weight.block_size, sums, prefetch);
      };
      if (Dots::kReadsParts) {
        add_tail(rows.codes, c * kBits / 8);
      } else {
        uint8_t tail[kBlockChannels][kStep * kBits / 8];
        const uint8_t* tails[kBlockChannels];
        for (size_t i = 0; i < rows.quads * kQuad; ++i) {
          memcpy(tail[i], rows.codes[i] + c * kBits / 8, (end - c) * kBits / 8);
          tails[i] = tail[i];
        }
        add_tail(tails, 0);
      }
      for (size_t i = 0; i < end - c; ++i) y[c + i] += sums[i];
    }
    for (size_t b = 0; rounded.unrounded >> b != 0; ++b) {
      if ((rounded.unrounded >> b & 1u) == 0) continue;
      const size_t first = start + b * weight.block_size;
      const size_t last = first + weight.block_size < end ? first + weight.block_size : end;
      add_unrounded<kBits, kSigned>(weight, first_column + first, add, last - first, y + first);
    }
  }
}

// Plain C++, for compilers to turn into vectors.
template <size_t kBits, bool kSigned>
struct PlainDots {
  using Rounder = nm_export::Rounder<kBits, kSigned>;
  static constexpr size_t kStep = kSmallestBlock;
  static constexpr bool kReadsParts = false;
  static void prefetch(const void* at) {
#ifdef __GNUC__
    __builtin_prefetch(at);
#else
    static_cast<void>(at);
#endif
  }
  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t, size_t quads, const RoundedValues& rounded,
                  size_t block, size_t, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    int32_t sum[kStep] = {};
    for (size_t i = 0; i < quads * kQuad; ++i) {
      if (i % kQuad == 0) next.step();
      const uint8_t* codes = rows[i] + offset;
      const auto value = static_cast<int8_t>(rounded.quads[i / kQuad][block] >> (8 * (i % kQuad)) & 0xffu);
      for (size_t c = 0; c < kStep; ++c) {
        sum[c] += value * (CodeFormat<kBits, false, true>::code(codes, c) ^ unsigned_shift<kBits, kSigned>());
      }
    }
    prefetch = next;
    for (size_t c = 0; c < kStep; ++c) {
      y[c] += rounded.step[block] * static_cast<float>(sum[c] - rounded.zero[block]);
    }
  }
};

template <template <size_t, bool> class Dots>
constexpr IntegerKernels integer_kernels(const IntegerTileKernels* tiles) {
  return {{add_rounded_rows<Dots<8, true>, 8, true>, add_rounded_rows<Dots<8, false>, 8, false>,
           add_rounded_rows<Dots<4, true>, 4, true>, add_rounded_rows<Dots<4, false>, 4, false>},
          {add_unrounded<8, true>, add_unrounded<8, false>, add_unrounded<4, true>, add_unrounded<4, false>},
          tiles};
}

}  // namespace
}  // namespace nm_export
