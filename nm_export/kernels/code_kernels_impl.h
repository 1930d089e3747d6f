// The product kernels of quantized weights. Part of product_kernels_impl.h.
//
// A row of codes is multiplied by the value of its channel times the scale of each block. Where all zero points are 0
// they are not read.
#pragma once

#include "product_kernels.h"
#include "tile_prefetch.h"

namespace nm_export {
namespace {

constexpr size_t kCodeRowsAtOnce = 8;

// How codes are stored.
template <size_t bits, bool is_signed, bool has_zero_points>
struct CodeFormat {
  static constexpr size_t kBits = bits;
  static constexpr bool kZeroPoints = has_zero_points;

  static int code(const void* codes, size_t index) {
    const auto* bytes = static_cast<const uint8_t*>(codes);
    if (bits == 8) return is_signed ? static_cast<int8_t>(bytes[index]) : bytes[index];
    const int nibble = bytes[index / 2] >> (index % 2 * 4) & 15;
    return is_signed ? (nibble ^ 8) - 8 : nibble;
  }
};

// How codes are added to sums. An instruction set may do it in its own way, as a class with such a member:
//
//   kStep     so many columns at a time; they are of one block
//   Narrow    the Adder for blocks that are smaller than kStep
//   Sums      the sums of kStep columns: load, store and zeros
//   Row       made of the value of a channel
//   Block     made of a Row and of the scale and the zero point of a block
//   add       sums + value * scale * (codes - zero point)
template <class Lanes>
struct PlainCodes {
  template <size_t bits, bool is_signed, bool has_zero_points>
  struct Adder : CodeFormat<bits, is_signed, has_zero_points> {
    static constexpr size_t kStep = Lanes::kWidth;
    static_assert(kStep <= kSmallestBlock, "a step must not be longer than a block");
    using Narrow = Adder;
    using Sums = typename Lanes::Float;
    using Row = typename Lanes::Float;
    struct Block {
      typename Lanes::Float factor;
      int zero_point;
    };

    static Sums zeros() { return Lanes::broadcast(0.0f); }
    static Sums load(const float* y) { return Lanes::load(y); }
    static void store(float* y, const Sums& sums) { Lanes::store(y, sums); }
    static Row row(float value) { return Lanes::broadcast(value); }
    static Block block(const Row& row, float scale, int zero_point) {
      return {Lanes::fma(row, Lanes::broadcast(scale), Lanes::broadcast(0.0f)), zero_point};
    }
    static Sums add(const Block& block, const uint8_t* codes, const Sums& sums) {
      float integers[kStep];
      for (size_t i = 0; i < kStep; ++i) integers[i] = static_cast<float>(Adder::code(codes, i) - block.zero_point);
      return Lanes::fma(block.factor, Lanes::load(integers), sums);
    }
  };
};

// A part of a row of a quantized weight: its codes, and the index of the block that they begin with.
struct CodeRow {
  const uint8_t* codes;
  size_t block;
};

// A quantized weight of the format of an Adder.
template <class Adder>
class CodeMatrix {
 public:
  explicit CodeMatrix(const Weight& weight) : weight_(weight) {}

  CodeRow row(size_t channel, size_t column) const {
    return {static_cast<const uint8_t*>(weight_.data) + (channel * weight_.columns + column) * Adder::kBits / 8,
            channel * weight_.blocks + column / weight_.block_size};
  }
  size_t block_size() const { return weight_.block_size; }
  float scale(size_t block) const { return weight_.scales[block]; }
  int zero_point(size_t block) const { return Adder::kZeroPoints ? Adder::code(weight_.zero_points, block) : 0; }
  float dequantized(const CodeRow& row, size_t column, size_t block) const {
    return scale(block) * static_cast<float>(Adder::code(row.codes, column) - zero_point(block));
  }

  template <class Lanes>
  void prefetch_block(size_t block) const {
    Lanes::prefetch(weight_.scales + block);
    if (!Adder::kZeroPoints) return;
    Lanes::prefetch(static_cast<const uint8_t*>(weight_.zero_points) + block * Adder::kBits / 8);
  }

 private:
  const Weight& weight_;
};

// Adds kRows rows to y, and prefetches the same columns of the next rows.
template <class Lanes, class Adder, size_t kRows>
void add_code_group(const CodeMatrix<Adder>& matrix, const CodeRow* rows, const float* value, const CodeRow* next,
                    size_t next_count, size_t columns, float* y) {
  constexpr size_t kPerLine = kCacheLine * 8 / Adder::kBits;
  const size_t block_size = matrix.block_size();
  const size_t per_line_of_scales = kCacheLine / sizeof(float) * block_size;
  typename Adder::Row factor[kRows];
  for (size_t i = 0; i < kRows; ++i) factor[i] = Adder::row(value[i]);
  size_t block = 0;
  size_t block_end = block_size;
  for (size_t line = 0; line < columns; line += kPerLine) {
    for (size_t i = 0; i < next_count; ++i) Lanes::prefetch(next[i].codes + line * Adder::kBits / 8);
    if ((line & (per_line_of_scales - 1)) == 0) {
      for (size_t i = 0; i < next_count; ++i) matrix.template prefetch_block<Lanes>(next[i].block + block);
    }
    const size_t line_end = line + kPerLine < columns ? line + kPerLine : columns;
    for (size_t c = line; c < line_end;) {
      const size_t end = block_end < line_end ? block_end : line_end;
      typename Adder::Block part[kRows];
      for (size_t i = 0; i < kRows; ++i) {
        const size_t b = rows[i].block + block;
        part[i] = Adder::block(factor[i], matrix.scale(b), matrix.zero_point(b));
      }
      for (; c + Adder::kStep <= end; c += Adder::kStep) {
        typename Adder::Sums sums = Adder::load(y + c);
        for (size_t i = 0; i < kRows; ++i) sums = Adder::add(part[i], rows[i].codes + c * Adder::kBits / 8, sums);
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

template <class Lanes, class Adder>
void add_code_rows_by(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y) {
  const CodeMatrix<Adder> matrix(weight);
  const size_t groups = (add.count + kCodeRowsAtOnce - 1) / kCodeRowsAtOnce;
  CodeRow rows[kCodeRowsAtOnce];
  CodeRow next_rows[kBlockChannels];
  size_t fetched = 0;
  for (size_t g = 0; g < groups; ++g) {
    const size_t start = g * kCodeRowsAtOnce;
    const size_t count = add.count - start < kCodeRowsAtOnce ? add.count - start : kCodeRowsAtOnce;
    for (size_t i = 0; i < count; ++i) rows[i] = matrix.row(add.row[start + i], first_column);
    const size_t end = next.count * (g + 1) / groups;  // the prefetches are spread evenly
    size_t next_count = 0;
    while (fetched < end) next_rows[next_count++] = matrix.row(next.row[fetched++], first_column);
    const float* value = add.value + start;
    size_t i = 0;
    if (count == kCodeRowsAtOnce) {
      add_code_group<Lanes, Adder, kCodeRowsAtOnce>(matrix, rows, value, next_rows, next_count, columns, y);
      continue;
    }
    for (; i < count; ++i) {
      add_code_group<Lanes, Adder, 1>(matrix, rows + i, value + i, next_rows, i == 0 ? next_count : 0, columns, y);
    }
  }
}

template <class Lanes, class Adder>
void pack_code_tile_by(const Weight& weight, const Part& part, float* tile, Prefetch& next) {
  const CodeMatrix<Adder> matrix(weight);
  const typename Adder::Row one = Adder::row(1.0f);
  for (size_t k = 0; k < part.rows; ++k, tile += kTileVectors * Lanes::kWidth) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<Lanes>(next);
    const CodeRow row = matrix.row(part.first_row + k, part.first_column);
    size_t block = row.block;
    size_t block_end = matrix.block_size() - part.first_column % matrix.block_size();
    for (size_t c = 0; c < part.columns; ++block, block_end += matrix.block_size()) {
      const size_t end = block_end < part.columns ? block_end : part.columns;
      const typename Adder::Block of_block = Adder::block(one, matrix.scale(block), matrix.zero_point(block));
      for (; c + Adder::kStep <= end; c += Adder::kStep) {
        Adder::store(tile + c, Adder::add(of_block, row.codes + c * Adder::kBits / 8, Adder::zeros()));
      }
      for (; c < end; ++c) tile[c] = matrix.dequantized(row, c, block);
    }
  }
}

template <class Lanes, class Codes, size_t kBits, bool kSigned>
void add_code_rows(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                   float* y) {
  using Plain = typename Codes::template Adder<kBits, kSigned, false>;
  using Shifted = typename Codes::template Adder<kBits, kSigned, true>;
  const bool narrow = weight.block_size < Plain::kStep;
  auto* by = narrow ? add_code_rows_by<Lanes, typename Plain::Narrow> : add_code_rows_by<Lanes, Plain>;
  if (weight.zero_points != nullptr) {
    by = narrow ? add_code_rows_by<Lanes, typename Shifted::Narrow> : add_code_rows_by<Lanes, Shifted>;
  }
  by(weight, first_column, add, next, columns, y);
}

template <class Lanes, class Codes, size_t kBits, bool kSigned>
void pack_code_tile(const Weight& weight, const Part& part, float* tile, Prefetch& next) {
  using Plain = typename Codes::template Adder<kBits, kSigned, false>;
  using Shifted = typename Codes::template Adder<kBits, kSigned, true>;
  const bool narrow = weight.block_size < Plain::kStep;
  auto* by = narrow ? pack_code_tile_by<Lanes, typename Plain::Narrow> : pack_code_tile_by<Lanes, Plain>;
  if (weight.zero_points != nullptr) {
    by = narrow ? pack_code_tile_by<Lanes, typename Shifted::Narrow> : pack_code_tile_by<Lanes, Shifted>;
  }
  by(weight, part, tile, next);
}

}  // namespace
}  // namespace nm_export
