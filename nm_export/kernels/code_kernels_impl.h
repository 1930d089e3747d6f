// The product kernels of quantized weights, as float32. Part of product_kernels_impl.h.
//
// All rows of a block of channels share the scales and zero points of its columns, so what a token keeps of a block is
// summed up first and scaled once. Lanes::codes<bits> widens kWidth codes.
#pragma once

#include "element_types.h"
#include "product_kernels.h"
#include "tile_prefetch.h"

namespace nm_export {
namespace {

constexpr size_t kCodeVectors = 4;  // that are summed up together

template <size_t kBits>
int32_t code_at(const uint8_t* codes, size_t index) {
  return kBits == 8 ? codes[index] : codes[index / 2] >> (index % 2 * 4) & 15;
}

template <size_t kBits>
float float_code_at(const uint8_t* codes, size_t index) {
  return static_cast<float>(code_at<kBits>(codes, index));
}

// A quantized weight from one of its columns on, whose scales and zero points are stored as `Scale`.
template <size_t kBits, class Scale>
class CodeMatrix {
 public:
  CodeMatrix(const Weight& weight, size_t first_column) : weight_(weight), first_column_(first_column) {}

  size_t columns() const { return weight_.columns; }
  float zero_point() const { return weight_.zero_point; }
  size_t block_of(size_t channel) const { return channel / weight_.block_size; }

  const uint8_t* row(size_t channel) const {
    return static_cast<const uint8_t*>(weight_.data) + (channel * weight_.columns + first_column_) * kBits / 8;
  }
  const Scale* scales(size_t block) const { return numbers(weight_.scales, block); }
  // Null where all zero points are zero_point().
  const Scale* zero_points(size_t block) const {
    return weight_.zero_points == nullptr ? nullptr : numbers(weight_.zero_points, block);
  }

 private:
  const Scale* numbers(const void* stored, size_t block) const {
    return static_cast<const Scale*>(stored) + block * weight_.columns + first_column_;
  }

  const Weight& weight_;
  const size_t first_column_;
};

// Adds some rows of one block of channels to y.
template <class Lanes, size_t kBits, class Scale>
void add_code_block(const CodeMatrix<kBits, Scale>& matrix, const Rows& add, size_t columns, float* y) {
  using Float = typename Lanes::Float;
  const size_t block = matrix.block_of(add.row[0]);
  const Scale* scales = matrix.scales(block);
  const Scale* zero_points = matrix.zero_points(block);
  const Float minus_one = Lanes::broadcast(-1.0f);
  const Float one = Lanes::broadcast(1.0f);
  const Float common = Lanes::broadcast(-matrix.zero_point());
  constexpr size_t kStep = kCodeVectors * Lanes::kWidth;
  size_t c = 0;
  for (; c + kStep <= columns; c += kStep) {
    Float minus_zero[kCodeVectors];
    Float sum[kCodeVectors];
    for (size_t v = 0; v < kCodeVectors; ++v) {
      sum[v] = Lanes::broadcast(0.0f);
      minus_zero[v] = common;
      if (zero_points != nullptr) {
        minus_zero[v] = Lanes::fma(Lanes::load(zero_points + c + v * Lanes::kWidth), minus_one, sum[v]);
      }
    }
    for (size_t i = 0; i < add.count; ++i) {
      const uint8_t* codes = matrix.row(add.row[i]) + c * kBits / 8;
      const Float factor = Lanes::broadcast(add.value[i]);
      for (size_t v = 0; v < kCodeVectors; ++v) {
        const Float code = Lanes::template codes<kBits>(codes + v * Lanes::kWidth * kBits / 8);
        sum[v] = Lanes::fma(factor, Lanes::fma(code, one, minus_zero[v]), sum[v]);
      }
    }
    for (size_t v = 0; v < kCodeVectors; ++v) {
      float* target = y + c + v * Lanes::kWidth;
      Lanes::store(target, Lanes::fma(Lanes::load(scales + c + v * Lanes::kWidth), sum[v], Lanes::load(target)));
    }
  }
  for (; c < columns; ++c) {
    const float zero_point = zero_points == nullptr ? matrix.zero_point() : Lanes::one(zero_points + c);
    float sum = 0.0f;
    for (size_t i = 0; i < add.count; ++i) {
      sum += add.value[i] * (float_code_at<kBits>(matrix.row(add.row[i]), c) - zero_point);
    }
    y[c] += Lanes::one(scales + c) * sum;
  }
}

template <class Lanes, size_t kBits, class Scale>
void add_code_rows_by(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y) {
  const CodeMatrix<kBits, Scale> matrix(weight, first_column);
  for (size_t i = 0; i < next.count; ++i) {
    const uint8_t* row = matrix.row(next.row[i]);
    for (size_t at = 0; at < columns * kBits / 8; at += kCacheLine) Lanes::prefetch(row + at);
  }
  for (size_t start = 0, end = 0; start < add.count; start = end) {
    while (end < add.count && matrix.block_of(add.row[end]) == matrix.block_of(add.row[start])) ++end;
    add_code_block<Lanes>(matrix, {add.row + start, add.value + start, end - start}, columns, y);
  }
}

template <class Lanes, size_t kBits, class Scale>
void pack_code_tile_by(const Weight& weight, const Part& part, float* tile, Prefetch& next) {
  using Float = typename Lanes::Float;
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  const CodeMatrix<kBits, Scale> matrix(weight, part.first_column);
  const Float one = Lanes::broadcast(1.0f);
  const Float nothing = Lanes::broadcast(0.0f);
  float scales[kTileColumns];
  float minus_zero[kTileColumns];
  for (size_t k = 0; k < part.rows; ++k, tile += kTileColumns) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<Lanes>(next);
    const size_t channel = part.first_row + k;
    const size_t block = matrix.block_of(channel);
    if (k == 0 || block != matrix.block_of(channel - 1)) {
      const Scale* zero_points = matrix.zero_points(block);
      for (size_t c = 0; c < part.columns; ++c) {
        scales[c] = Lanes::one(matrix.scales(block) + c);
        minus_zero[c] = -(zero_points == nullptr ? matrix.zero_point() : Lanes::one(zero_points + c));
      }
    }
    const uint8_t* codes = matrix.row(channel);
    size_t c = 0;
    for (; c + Lanes::kWidth <= part.columns; c += Lanes::kWidth) {
      const Float code = Lanes::template codes<kBits>(codes + c * kBits / 8);
      const Float shifted = Lanes::fma(code, one, Lanes::load(minus_zero + c));
      Lanes::store(tile + c, Lanes::fma(shifted, Lanes::load(scales + c), nothing));
    }
    for (; c < part.columns; ++c) tile[c] = (float_code_at<kBits>(codes, c) + minus_zero[c]) * scales[c];
  }
}

template <class Lanes, size_t kBits>
void add_code_rows(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                   float* y) {
  const auto by = weight.half_scales ? add_code_rows_by<Lanes, kBits, Float16> : add_code_rows_by<Lanes, kBits, float>;
  by(weight, first_column, add, next, columns, y);
}

template <class Lanes, size_t kBits>
void pack_code_tile(const Weight& weight, const Part& part, float* tile, Prefetch& next) {
  const auto by =
      weight.half_scales ? pack_code_tile_by<Lanes, kBits, Float16> : pack_code_tile_by<Lanes, kBits, float>;
  by(weight, part, tile, next);
}

}  // namespace
}  // namespace nm_export
