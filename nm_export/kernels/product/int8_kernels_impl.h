// The int8 kernels, written once: over a vector class V that multiplies bytes (kDots4 of isa/vector_concept.h), or as
// plain C++ that compilers turn into vectors. For the kernels.cpp of an instruction set.
//
// Weights are taken without sign: a signed one is 2^(bits - 1) more, and so is its zero point. What rounding is, is
// said in docs/semantics.md; that integers are exact follows from their size: 64 products of at most 127 * 255 are
// below 2^24.
//
// A token's kept rows are taken four at a time, a dot4 group, and their bytes are interleaved, so that one instruction
// multiplies the four bytes of an output and adds them up. With rows a, b, c, d and a vector of 16 bytes:
//
//   four rows of the weight, where they lie        interleaved: a number of 32 bits for each output
//     a0 a1 a2 a3 a4 a5 ... a15                      v[0] = a0 b0 c0 d0 | a1 b1 c1 d1 | ... | a3 b3 c3 d3
//     b0 b1 b2 b3 b4 b5 ... b15                      v[1] = a4 b4 c4 d4 | ...
//     c0 c1 c2 c3 c4 c5 ... c15                      v[2] = a8 b8 c8 d8 | ...
//     d0 d1 d2 d3 d4 d5 ... d15                      v[3] = a12 b12 c12 d12 | ... | a15 b15 c15 d15
//
//   times the token's activations  qa qb qc qd | qa qb qc qd | ...   (others in each block of outputs)
//
// Longer vectors do so in each part of 128 bits, and add_parts puts the outputs in order. Weights of 4 bits are
// interleaved as bytes of two outputs, which are split after that. isa/avx512vnni/packed_int8_impl.h has a picture of
// what is packed for more tokens.
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

// Where the largest product of a block is smaller than this, its reciprocal may overflow.
constexpr float kSmallestScale = 0x1p-100f;
constexpr int32_t kInfinityBits = 0x7f800000;

// Adding it rounds numbers below 2^22 to integers, which are then the low bits. Of NaN any byte results.
constexpr float kRoundToInteger = 0x1.8p23f;

// The rows that are added, filled up to whole dot4 groups with rows of value 0.
struct AddedRows {
  const uint8_t* bytes[kBlockInputs];  // at the first output of a task
  float value[kBlockInputs];
  size_t block[kBlockInputs];  // that the first output belongs to
  size_t count;
  size_t groups;
};

// Copies up to 16 numbers; a call of memcpy would take longer.
template <class Number>
void copy_few(const Number* source, size_t count, Number* target) {
  for (size_t size = kPanelBlocks; size > 0; size /= 2) {
    if ((count & size) == 0) continue;
    for (size_t i = 0; i < size; ++i) target[i] = source[i];
    source += size;
    target += size;
  }
}

// What makes an integer unsigned.
template <size_t kBits, bool kSigned>
constexpr int unsigned_shift() {
  return kSigned ? 1 << (kBits - 1) : 0;
}

// The zero points of up to kPanelBlocks blocks, of unsigned integers. What there is room for more becomes arbitrary.
template <size_t kBits, bool kSigned>
void load_zero_points(const void* stored, size_t block, size_t count, int32_t* zero_points) {
  uint8_t integers[kPanelBlocks] = {};
  const auto* bytes = static_cast<const uint8_t*>(stored) + block * kBits / 8;
  if (kBits == 8) {
    copy_few(bytes, count, integers);
  } else {
    const size_t odd = block % 2;
    uint8_t pairs[kPanelBlocks] = {};
    copy_few(bytes, (odd + count + 1) / 2, pairs);
    uint64_t nibbles = 0;
    for (size_t i = 0; i < 8; ++i) nibbles |= static_cast<uint64_t>(pairs[i]) << (8 * i);
    if (odd != 0) nibbles = nibbles >> 4 | static_cast<uint64_t>(pairs[8]) << 60;
    for (size_t b = 0; b < kPanelBlocks; ++b) integers[b] = static_cast<uint8_t>(nibbles >> (4 * b) & 15);
  }
  for (size_t b = 0; b < kPanelBlocks; ++b) zero_points[b] = integers[b] ^ unsigned_shift<kBits, kSigned>();
}

// Rounds the activations of some rows, one panel after the other. An instruction set may have its own class for it.
template <size_t kBits, bool kSigned>
class ScalarQuantizer {
 public:
  ScalarQuantizer(const Weight& weight, const AddedRows& rows) : weight_(weight), rows_(rows) {}

  // For the blocks [first, first + count) of a task, 0 < count <= kPanelBlocks.
  void quantize(size_t first, size_t count, Int8Activations& activations) {
    const float* scales[kBlockInputs];
    for (size_t i = 0; i < rows_.groups * kDot4; ++i) scales[i] = scales_of(i, first, count);
    float reciprocal[kPanelBlocks];
    find_scales(scales, count, activations, reciprocal);

    int32_t zero_sum[kPanelBlocks] = {};
    for (size_t g = 0; g < rows_.groups; ++g) {
      uint32_t bytes[kPanelBlocks] = {};
      for (size_t i = 0; i < kDot4; ++i) {
        const float value = rows_.value[g * kDot4 + i];
        const float* scale = scales[g * kDot4 + i];
        int32_t integer[kPanelBlocks];
        for (size_t b = 0; b < kPanelBlocks; ++b) {
          const float shifted = value * scale[b] * reciprocal[b] + kRoundToInteger;
          const uint32_t byte = static_cast<uint32_t>(bits_of(shifted)) & 0xffu;
          integer[b] = static_cast<int8_t>(byte);
          bytes[b] |= byte << (8 * i);
        }
        if (weight_.zero_points == nullptr) {
          for (size_t b = 0; b < kPanelBlocks; ++b) zero_sum[b] += integer[b];
        } else {
          int32_t zero_points[kPanelBlocks];
          load_zero_points<kBits, kSigned>(weight_.zero_points, rows_.block[g * kDot4 + i] + first, count, zero_points);
          for (size_t b = 0; b < kPanelBlocks; ++b) zero_sum[b] += integer[b] * zero_points[b];
        }
      }
      memcpy(activations.groups[g], bytes, sizeof bytes);
    }
    const int32_t zero_point = weight_.zero_points == nullptr ? unsigned_shift<kBits, kSigned>() : 1;
    for (size_t b = 0; b < kPanelBlocks; ++b) activations.zero_sum[b] = zero_sum[b] * zero_point;
  }

 private:
  const float* scales_of(size_t row, size_t first, size_t count) {
    const float* scales = weight_.scales + rows_.block[row] + first;
    if (count == kPanelBlocks) return scales;
    memset(scales_[row], 0, sizeof scales_[row]);
    copy_few(scales, count, scales_[row]);
    return scales_[row];
  }

  // Absolute values are compared as integers: a NaN is above infinity.
  void find_scales(const float* const* scales, size_t count, Int8Activations& activations, float* reciprocal) const {
    int32_t largest[kPanelBlocks] = {};
    for (size_t i = 0; i < rows_.count; ++i) {
      const float value = rows_.value[i];
      for (size_t b = 0; b < kPanelBlocks; ++b) {
        const int32_t bits = bits_of(value * scales[i][b]) & 0x7fffffff;
        largest[b] = bits > largest[b] ? bits : largest[b];
      }
    }
    uint32_t as_float = 0;
    for (size_t b = 0; b < kPanelBlocks; ++b) {
      const bool is_good = largest[b] >= bits_of(kSmallestScale) && largest[b] < kInfinityBits;
      const float a = float_of(static_cast<uint32_t>(is_good ? largest[b] : bits_of(1.0f)));
      reciprocal[b] = is_good ? static_cast<float>(kLargestActivation) / a : 0.0f;
      activations.scale[b] = is_good ? a / static_cast<float>(kLargestActivation) : 0.0f;
      as_float |= (is_good || largest[b] == 0 ? 0u : 1u) << b;
    }
    activations.as_float = as_float & ((1u << count) - 1);
  }

  const Weight& weight_;
  const AddedRows& rows_;
  float scales_[kBlockInputs][kPanelBlocks];
};

template <size_t kBits, bool kSigned>
void add_as_float(const Weight& weight, size_t first_output, const WeightRows& add, size_t outputs, float* y) {
  using Format = QuantizedFormat<kBits, kSigned, true>;
  for (size_t i = 0; i < add.count; ++i) {
    const size_t row = add.row[i];
    const auto* bytes = static_cast<const uint8_t*>(weight.data) + (row * weight.outputs + first_output) * kBits / 8;
    const size_t block = row * weight.blocks + first_output / weight.block_size;
    const int zero_point = weight.zero_points == nullptr ? 0 : Format::integer(weight.zero_points, block);
    for (size_t c = 0; c < outputs; ++c) {
      const auto integer = static_cast<float>(Format::integer(bytes, c) - zero_point);
      y[c] += add.value[i] * (weight.scales[block] * integer);
    }
  }
}

// Dots has
//
//   Quantizer  does what ScalarQuantizer does
//   kStep      so many outputs at a time; a step may be of several blocks or of a part of one
//   prefetch   of one cache line
//   add        y[c] += scale * (sum over rows of activation * weight - zero_sum) for c < kStep, with weights from
//   `offset`
//              bytes on, the first of which is of block `block` and, if a block is longer than a step, begins anywhere
//              in it
//   kReadsParts  whether `add` reads no more than `bytes` of the weights of a row; what is missing counts as 0.
//   Otherwise
//              it reads a whole step
template <class Dots, size_t kBits, bool kSigned>
void add_int8_rows(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                   size_t outputs, float* y) {
  constexpr size_t kStep = Dots::kStep;
  const auto* weights = static_cast<const uint8_t*>(weight.data);
  const auto at = [&](size_t input) { return weights + (input * weight.outputs + first_output) * kBits / 8; };
  const auto block_at = [&](size_t input) { return input * weight.blocks + first_output / weight.block_size; };
  const size_t blocks = (outputs + weight.block_size - 1) / weight.block_size;

  PrefetchRange ranges[3 * kBlockInputs];
  size_t count = 0;
  for (size_t i = 0; i < next.count; ++i) {
    const size_t block = block_at(next.row[i]);
    ranges[count++] = prefetch_range(at(next.row[i]), outputs * kBits / 8);
    ranges[count++] = prefetch_range(weight.scales + block, blocks * sizeof(float));
    if (weight.zero_points == nullptr) continue;
    const auto* zero_points = static_cast<const uint8_t*>(weight.zero_points) + block * kBits / 8;
    ranges[count++] = prefetch_range(zero_points, (blocks + 1) * kBits / 8);
  }
  if (add.count == 0) {
    RangePrefetchSchedule<Dots>(ranges, count, 1).step();
    return;
  }
  AddedRows rows;
  rows.count = add.count;
  rows.groups = (add.count + kDot4 - 1) / kDot4;
  for (size_t i = 0; i < rows.groups * kDot4; ++i) {
    const size_t row = add.row[i < add.count ? i : 0];
    rows.bytes[i] = at(row);
    rows.block[i] = block_at(row);
    rows.value[i] = i < add.count ? add.value[i] : 0.0f;
  }

  RangePrefetchSchedule<Dots> prefetch(ranges, count, (outputs + kStep - 1) / kStep * rows.groups);

  typename Dots::Quantizer quantizer(weight, rows);
  Int8Activations activations;
  const size_t panel = kPanelBlocks * weight.block_size;
  for (size_t start = 0; start < outputs; start += panel) {
    const size_t end = start + panel < outputs ? start + panel : outputs;
    const size_t first_block = start / weight.block_size;
    quantizer.quantize(first_block, (end - start + weight.block_size - 1) / weight.block_size, activations);
    size_t c = start;
    for (; c + kStep <= end; c += kStep) {
      Dots::add(rows.bytes, c * kBits / 8, kStep * kBits / 8, rows.groups, activations,
                c / weight.block_size - first_block, weight.block_size, y + c, prefetch);
    }
    if (c < end) {
      float sums[kStep] = {};
      const auto add_tail = [&](const uint8_t* const* from, size_t offset) {
        Dots::add(from, offset, (end - c) * kBits / 8, rows.groups, activations, c / weight.block_size - first_block,
                  weight.block_size, sums, prefetch);
      };
      if (Dots::kReadsParts) {
        add_tail(rows.bytes, c * kBits / 8);
      } else {
        uint8_t tail[kBlockInputs][kStep * kBits / 8];
        const uint8_t* tails[kBlockInputs];
        for (size_t i = 0; i < rows.groups * kDot4; ++i) {
          memcpy(tail[i], rows.bytes[i] + c * kBits / 8, (end - c) * kBits / 8);
          tails[i] = tail[i];
        }
        add_tail(tails, 0);
      }
      for (size_t i = 0; i < end - c; ++i) y[c + i] += sums[i];
    }
    for (size_t b = 0; activations.as_float >> b != 0; ++b) {
      if ((activations.as_float >> b & 1u) == 0) continue;
      const size_t first = start + b * weight.block_size;
      const size_t last = first + weight.block_size < end ? first + weight.block_size : end;
      add_as_float<kBits, kSigned>(weight, first_output + first, add, last - first, y + first);
    }
  }
}

// Plain C++, for compilers to turn into vectors.
template <size_t kBits, bool kSigned>
struct ScalarDots {
  using Quantizer = ScalarQuantizer<kBits, kSigned>;
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
  static void add(const uint8_t* const* rows, size_t offset, size_t, size_t groups, const Int8Activations& activations,
                  size_t block, size_t, float* y, Prefetch& prefetch) {
    Prefetch next = prefetch;
    int32_t sum[kStep] = {};
    for (size_t i = 0; i < groups * kDot4; ++i) {
      if (i % kDot4 == 0) next.step();
      const uint8_t* weights = rows[i] + offset;
      const auto value = static_cast<int8_t>(activations.groups[i / kDot4][block] >> (8 * (i % kDot4)) & 0xffu);
      for (size_t c = 0; c < kStep; ++c) {
        sum[c] += value * (QuantizedFormat<kBits, false, true>::integer(weights, c) ^ unsigned_shift<kBits, kSigned>());
      }
    }
    prefetch = next;
    for (size_t c = 0; c < kStep; ++c) {
      y[c] += activations.scale[block] * static_cast<float>(sum[c] - activations.zero_sum[block]);
    }
  }
};

// The activations of some blocks, by vectors.
template <class V>
typename V::Float scaled_sums(const Int8Activations& activations, size_t block, typename V::Int blocks,
                              typename V::Int sums) {
  const auto scale = V::bits_to_float(V::look_up(activations.scale + block, blocks));
  return V::mul(scale, V::to_float(V::sub_int(sums, V::look_up(activations.zero_sum + block, blocks))));
}

// Four rows, interleaved; see above.
template <class V, bool kFlips>
void load_interleaved(const uint8_t* const* rows, size_t offset, size_t bytes, uint32_t flip,
                      typename V::Int* interleaved) {
  typename V::Int row[kDot4];
  for (size_t i = 0; i < kDot4; ++i) {
    row[i] = V::load_quantized(rows[i] + offset, bytes);
    if (kFlips) row[i] = V::xor_int(row[i], V::broadcast_int(static_cast<int32_t>(flip)));
  }
  V::interleave(row, interleaved);
}

// Weights of 8 bits by vectors.
template <class V, template <size_t, bool> class AnyQuantizer, size_t kBits, bool kSigned>
struct VectorDots : V {
  using Quantizer = AnyQuantizer<kBits, kSigned>;
  static constexpr size_t kStep = 4 * V::kWidth;
  static constexpr bool kReadsParts = V::kLoadsFewBytes;

  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t bytes, size_t groups,
                  const Int8Activations& activations, size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    using Int = typename V::Int;
    Prefetch next = prefetch;
    const Int blocks = V::blocks_of(16, 0, block_size);
    Int sums[4];
    for (size_t i = 0; i < 4; ++i) sums[i] = V::broadcast_int(0);
    for (size_t g = 0; g < groups; ++g) {
      next.step();
      Int weights[4];
      load_interleaved<V, kSigned>(rows + g * kDot4, offset, bytes, 0x80808080u, weights);
      const Int values = V::look_up(activations.groups[g] + block, blocks);
      for (size_t i = 0; i < 4; ++i) sums[i] = V::template dot4<8>(sums[i], weights[i], values);
    }
    prefetch = next;
    typename V::Float v[4];
    for (size_t i = 0; i < 4; ++i) v[i] = scaled_sums<V>(activations, block, blocks, sums[i]);
    V::add_parts(y, 16, v);
  }
};

// Weights of 4 bits: each byte has an even and an odd output.
template <class V, template <size_t, bool> class AnyQuantizer, bool kSigned>
struct VectorDots<V, AnyQuantizer, 4, kSigned> : V {
  using Quantizer = AnyQuantizer<4, kSigned>;
  static constexpr size_t kStep = 8 * V::kWidth;
  static constexpr bool kReadsParts = V::kLoadsFewBytes;

  template <class Prefetch>
  static void add(const uint8_t* const* rows, size_t offset, size_t bytes, size_t groups,
                  const Int8Activations& activations, size_t block, size_t block_size, float* y, Prefetch& prefetch) {
    using Int = typename V::Int;
    Prefetch next = prefetch;
    const Int flip = V::broadcast_int(kSigned ? 0x08080808 : 0);
    const Int blocks[2] = {V::blocks_of(32, 0, block_size), V::blocks_of(32, 16, block_size)};
    Int even[4];
    Int odd[4];
    for (size_t i = 0; i < 4; ++i) even[i] = odd[i] = V::broadcast_int(0);
    for (size_t g = 0; g < groups; ++g) {
      next.step();
      Int pairs[4];
      load_interleaved<V, kSigned && !V::kFlipsNibbles>(rows + g * kDot4, offset, bytes, 0x88888888u, pairs);
      for (size_t i = 0; i < 4; ++i) {
        const Int values = V::look_up(activations.groups[g] + block, blocks[i / 2]);
        even[i] = V::template dot4<4>(even[i], V::nibbles(pairs[i], flip), values);
        odd[i] = V::template dot4<4>(odd[i], V::high_nibbles(pairs[i], flip), values);
      }
    }
    prefetch = next;
    for (size_t h = 0; h < 2; ++h) {
      typename V::Float v[4];
      for (size_t i = 0; i < 2; ++i) {
        const auto low = scaled_sums<V>(activations, block, blocks[h], even[h * 2 + i]);
        const auto high = scaled_sums<V>(activations, block, blocks[h], odd[h * 2 + i]);
        V::zip_parts(low, high, v[i * 2], v[i * 2 + 1]);
      }
      V::add_parts(y + h * 16, 32, v);
    }
  }
};

// Of plain C++, or by the vectors of V and a class that rounds.
struct ScalarInt8 {
  template <size_t kBits, bool kSigned>
  using Dots = ScalarDots<kBits, kSigned>;
};
template <class V, template <size_t, bool> class Quantizer = ScalarQuantizer>
struct VectorInt8 {
  static_assert(V::kDots4, "isa/vector_concept.h");
  template <size_t kBits, bool kSigned>
  using Dots = VectorDots<V, Quantizer, kBits, kSigned>;
};

template <class Int8>
constexpr Int8Kernels int8_kernels(const PackedInt8Kernels* packed) {
  return {{add_int8_rows<typename Int8::template Dots<8, true>, 8, true>,
           add_int8_rows<typename Int8::template Dots<8, false>, 8, false>,
           add_int8_rows<typename Int8::template Dots<4, true>, 4, true>,
           add_int8_rows<typename Int8::template Dots<4, false>, 4, false>},
          {add_as_float<8, true>, add_as_float<8, false>, add_as_float<4, true>, add_as_float<4, false>},
          packed};
}

}  // namespace
}  // namespace nm_export
