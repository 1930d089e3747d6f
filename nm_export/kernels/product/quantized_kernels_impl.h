// The kernels of float products with quantized weights. Part of product_kernels_impl.h.
//
// A row of integers is multiplied by the value of its input times the scale of each block. Where all zero points are 0
// they are not read.
#pragma once

#include "product/prefetch_impl.h"
#include "product/weight.h"

namespace nm_export {
namespace {

constexpr size_t kTileVectors = 8;  // as many sums as hide the latency of multiply-add, and few enough registers
constexpr size_t kQuantizedRowsAtOnce = 8;

// How the integers of a quantized weight are stored.
template <size_t bits, bool is_signed, bool has_zero_points>
struct QuantizedFormat {
  static constexpr size_t kBits = bits;
  static constexpr bool kZeroPoints = has_zero_points;

  static int integer(const void* weights, size_t index) {
    const auto* bytes = static_cast<const uint8_t*>(weights);
    if (bits == 8) return is_signed ? static_cast<int8_t>(bytes[index]) : bytes[index];
    const int nibble = bytes[index / 2] >> (index % 2 * 4) & 15;
    return is_signed ? (nibble ^ 8) - 8 : nibble;
  }
};

// How quantized weights are added to sums. There are three such classes, of which the first suits every V, and an
// instruction set may have another one:
//
//   kStep     so many outputs at a time; they are of one block
//   Narrow    the adder for blocks that are smaller than kStep
//   Sums      the sums of kStep outputs: load, store and zeros
//   Row       made of the value of an input
//   Block     made of a Row and of the scale and the zero point of a block
//   add       sums + value * scale * (integer - zero point)
//
// Integers one by one.
template <class V, size_t bits, bool is_signed, bool has_zero_points>
struct ScalarAdder : QuantizedFormat<bits, is_signed, has_zero_points> {
  static constexpr size_t kStep = V::kWidth;
  static_assert(kStep <= kSmallestBlock, "a step must not be longer than a block");
  using Narrow = ScalarAdder;
  using Sums = typename V::Float;
  using Row = typename V::Float;
  struct Block {
    typename V::Float factor;
    int zero_point;
  };

  static Sums zeros() { return V::broadcast(0.0f); }
  static Sums load(const float* y) { return V::load(y); }
  static void store(float* y, const Sums& sums) { V::store(y, sums); }
  static Row row(float value) { return V::broadcast(value); }
  static Block block(const Row& row, float scale, int zero_point) {
    return {V::fma(row, V::broadcast(scale), V::broadcast(0.0f)), zero_point};
  }
  static Sums add(const Block& block, const uint8_t* weights, const Sums& sums) {
    float integers[kStep];
    for (size_t i = 0; i < kStep; ++i) {
      integers[i] = static_cast<float>(ScalarAdder::integer(weights, i) - block.zero_point);
    }
    return V::fma(block.factor, V::load(integers), sums);
  }
};

// Integers of 8 bits, a vector at a time.
template <class V, size_t bits, bool is_signed, bool has_zero_points>
struct VectorAdder : QuantizedFormat<bits, is_signed, has_zero_points> {
  static constexpr size_t kStep = V::kWidth;
  using Narrow = VectorAdder;
  using Sums = typename V::Float;
  using Row = typename V::Float;
  struct Block {
    typename V::Float factor;
    typename V::Int zero_point;
  };

  static Sums zeros() { return V::broadcast(0.0f); }
  static Sums load(const float* y) { return V::load(y); }
  static void store(float* y, const Sums& sums) { V::store(y, sums); }
  static Row row(float value) { return V::broadcast(value); }
  static Block block(Row row, float scale, int zero_point) {
    return {V::mul(row, V::broadcast(scale)), V::broadcast_int(zero_point)};
  }
  static Sums add(const Block& block, const uint8_t* weights, Sums sums) {
    return add(block, V::template load_bytes<is_signed>(weights), sums);
  }
  static Sums add(const Block& block, typename V::Int integers, Sums sums) {
    if (has_zero_points) integers = V::sub_int(integers, block.zero_point);
    return V::fma(block.factor, V::to_float(integers), sums);
  }
};

// Integers of 4 bits: the sums of even and of odd outputs, as low and high halves of bytes come.
template <class V, bool is_signed, bool has_zero_points>
struct VectorAdder<V, 4, is_signed, has_zero_points> : QuantizedFormat<4, is_signed, has_zero_points> {
  using Integers = VectorAdder<V, 8, is_signed, has_zero_points>;
  static constexpr size_t kStep = 2 * V::kWidth;
  using Narrow = VectorAdder;
  struct Sums {
    typename V::Float even;
    typename V::Float odd;
  };
  using Row = typename Integers::Row;
  using Block = typename Integers::Block;

  static Sums zeros() { return {V::broadcast(0.0f), V::broadcast(0.0f)}; }
  static Sums load(const float* y) {
    Sums sums;
    V::unzip(V::load(y), V::load(y + V::kWidth), sums.even, sums.odd);
    return sums;
  }
  static void store(float* y, const Sums& sums) {
    typename V::Float low, high;
    V::zip(sums.even, sums.odd, low, high);
    V::store(y, low);
    V::store(y + V::kWidth, high);
  }
  static Row row(float value) { return Integers::row(value); }
  static Block block(Row row, float scale, int zero_point) { return Integers::block(row, scale, zero_point); }
  static Sums add(const Block& block, const uint8_t* weights, const Sums& sums) {
    const auto pairs = V::template load_bytes<is_signed>(weights);
    const auto even = V::template low_four<is_signed>(pairs);
    const auto odd = V::template high_four<is_signed>(pairs);
    return {Integers::add(block, even, sums.even), Integers::add(block, odd, sums.odd)};
  }
};

template <class V, bool kVectors = V::kConvertsBytes>
struct DefaultAdders {
  template <size_t bits, bool is_signed, bool has_zero_points>
  using Adder = ScalarAdder<V, bits, is_signed, has_zero_points>;
};
template <class V>
struct DefaultAdders<V, true> {
  template <size_t bits, bool is_signed, bool has_zero_points>
  using Adder = VectorAdder<V, bits, is_signed, has_zero_points>;
};

// Some outputs of a row of a quantized weight: their bytes, and the index of the block that they begin with.
struct QuantizedRow {
  const uint8_t* bytes;
  size_t block;
};

// A quantized weight of the format of an Adder.
template <class Adder>
class QuantizedMatrix {
 public:
  explicit QuantizedMatrix(const Weight& weight) : weight_(weight) {}

  QuantizedRow row(size_t input, size_t output) const {
    return {static_cast<const uint8_t*>(weight_.data) + (input * weight_.outputs + output) * Adder::kBits / 8,
            input * weight_.blocks + output / weight_.block_size};
  }
  size_t block_size() const { return weight_.block_size; }
  float scale(size_t block) const { return weight_.scales[block]; }
  int zero_point(size_t block) const { return Adder::kZeroPoints ? Adder::integer(weight_.zero_points, block) : 0; }
  float dequantized(const QuantizedRow& row, size_t output, size_t block) const {
    return scale(block) * static_cast<float>(Adder::integer(row.bytes, output) - zero_point(block));
  }

  template <class V>
  void prefetch_block(size_t block) const {
    V::prefetch(weight_.scales + block);
    if (!Adder::kZeroPoints) return;
    V::prefetch(static_cast<const uint8_t*>(weight_.zero_points) + block * Adder::kBits / 8);
  }

 private:
  const Weight& weight_;
};

// Adds kRows rows to y, and prefetches the same outputs of the next rows.
template <class V, class Adder, size_t kRows>
void add_quantized_group(const QuantizedMatrix<Adder>& matrix, const QuantizedRow* rows, const float* value,
                         const QuantizedRow* next, size_t next_count, size_t outputs, float* y) {
  constexpr size_t kPerLine = kCacheLine * 8 / Adder::kBits;
  const size_t block_size = matrix.block_size();
  const size_t per_line_of_scales = kCacheLine / sizeof(float) * block_size;
  typename Adder::Row factor[kRows];
  for (size_t i = 0; i < kRows; ++i) factor[i] = Adder::row(value[i]);
  size_t block = 0;
  size_t block_end = block_size;
  for (size_t line = 0; line < outputs; line += kPerLine) {
    for (size_t i = 0; i < next_count; ++i) V::prefetch(next[i].bytes + line * Adder::kBits / 8);
    if ((line & (per_line_of_scales - 1)) == 0) {
      for (size_t i = 0; i < next_count; ++i) matrix.template prefetch_block<V>(next[i].block + block);
    }
    const size_t line_end = line + kPerLine < outputs ? line + kPerLine : outputs;
    for (size_t c = line; c < line_end;) {
      const size_t end = block_end < line_end ? block_end : line_end;
      typename Adder::Block part[kRows];
      for (size_t i = 0; i < kRows; ++i) {
        const size_t b = rows[i].block + block;
        part[i] = Adder::block(factor[i], matrix.scale(b), matrix.zero_point(b));
      }
      for (; c + Adder::kStep <= end; c += Adder::kStep) {
        typename Adder::Sums sums = Adder::load(y + c);
        for (size_t i = 0; i < kRows; ++i) sums = Adder::add(part[i], rows[i].bytes + c * Adder::kBits / 8, sums);
        Adder::store(y + c, sums);
      }
      for (; c < end; ++c) {
        for (size_t i = 0; i < kRows; ++i) y[c] += value[i] * matrix.dequantized(rows[i], c, rows[i].block + block);
      }
      if (end == block_end) {
        ++block;
        block_end += block_size;
      }
    }
  }
}

template <class V, class Adder>
void add_quantized_rows_by(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                           size_t outputs, float* y) {
  const QuantizedMatrix<Adder> matrix(weight);
  const size_t groups = (add.count + kQuantizedRowsAtOnce - 1) / kQuantizedRowsAtOnce;
  QuantizedRow rows[kQuantizedRowsAtOnce];
  QuantizedRow next_rows[kBlockInputs];
  size_t fetched = 0;
  for (size_t g = 0; g < groups; ++g) {
    const size_t start = g * kQuantizedRowsAtOnce;
    const size_t count = add.count - start < kQuantizedRowsAtOnce ? add.count - start : kQuantizedRowsAtOnce;
    for (size_t i = 0; i < count; ++i) rows[i] = matrix.row(add.row[start + i], first_output);
    const size_t end = next.count * (g + 1) / groups;  // the prefetches are spread evenly
    size_t next_count = 0;
    while (fetched < end) next_rows[next_count++] = matrix.row(next.row[fetched++], first_output);
    const float* value = add.value + start;
    size_t i = 0;
    if (count == kQuantizedRowsAtOnce) {
      add_quantized_group<V, Adder, kQuantizedRowsAtOnce>(matrix, rows, value, next_rows, next_count, outputs, y);
      continue;
    }
    for (; i < count; ++i) {
      add_quantized_group<V, Adder, 1>(matrix, rows + i, value + i, next_rows, i == 0 ? next_count : 0, outputs, y);
    }
  }
}

template <class V, class Adder>
void pack_quantized_tile_by(const Weight& weight, const WeightBlock& part, float* tile, PrefetchSchedule& next) {
  const QuantizedMatrix<Adder> matrix(weight);
  const typename Adder::Row one = Adder::row(1.0f);
  for (size_t k = 0; k < part.inputs; ++k, tile += kTileVectors * V::kWidth) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<V>(next);
    const QuantizedRow row = matrix.row(part.first_input + k, part.first_output);
    size_t block = row.block;
    size_t block_end = matrix.block_size() - part.first_output % matrix.block_size();
    for (size_t c = 0; c < part.outputs; ++block, block_end += matrix.block_size()) {
      const size_t end = block_end < part.outputs ? block_end : part.outputs;
      const typename Adder::Block of_block = Adder::block(one, matrix.scale(block), matrix.zero_point(block));
      for (; c + Adder::kStep <= end; c += Adder::kStep) {
        Adder::store(tile + c, Adder::add(of_block, row.bytes + c * Adder::kBits / 8, Adder::zeros()));
      }
      for (; c < end; ++c) tile[c] = matrix.dequantized(row, c, block);
    }
  }
}

template <class V, class Adders, size_t kBits, bool kSigned>
void add_quantized_rows(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                        size_t outputs, float* y) {
  using Plain = typename Adders::template Adder<kBits, kSigned, false>;
  using Shifted = typename Adders::template Adder<kBits, kSigned, true>;
  const bool narrow = weight.block_size < Plain::kStep;
  auto* by = narrow ? add_quantized_rows_by<V, typename Plain::Narrow> : add_quantized_rows_by<V, Plain>;
  if (weight.zero_points != nullptr) {
    by = narrow ? add_quantized_rows_by<V, typename Shifted::Narrow> : add_quantized_rows_by<V, Shifted>;
  }
  by(weight, first_output, add, next, outputs, y);
}

template <class V, class Adders, size_t kBits, bool kSigned>
void pack_quantized_tile(const Weight& weight, const WeightBlock& block, float* tile, PrefetchSchedule& next) {
  using Plain = typename Adders::template Adder<kBits, kSigned, false>;
  using Shifted = typename Adders::template Adder<kBits, kSigned, true>;
  const bool narrow = weight.block_size < Plain::kStep;
  auto* by = narrow ? pack_quantized_tile_by<V, typename Plain::Narrow> : pack_quantized_tile_by<V, Plain>;
  if (weight.zero_points != nullptr) {
    by = narrow ? pack_quantized_tile_by<V, typename Shifted::Narrow> : pack_quantized_tile_by<V, Shifted>;
  }
  by(weight, block, tile, next);
}

}  // namespace
}  // namespace nm_export
