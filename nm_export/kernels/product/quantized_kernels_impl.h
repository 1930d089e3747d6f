// The kernels of float products with quantized weights. Part of product_kernels_impl.h.
//
// All inputs of a block of a quantized weight share the scales and zero points of its outputs, so what a token keeps of
// a block is summed up first and scaled once.
#pragma once

#include "product/prefetch_impl.h"
#include "product/weight.h"

namespace nm_export {
namespace {

constexpr size_t kTileVectors = 8;  // as many sums as hide the latency of multiply-add, and few enough registers

constexpr size_t kQuantizedVectors = 4;  // of outputs, that are summed up together

template <size_t kBits>
float integer_at(const uint8_t* integers, size_t index) {
  return static_cast<float>(kBits == 8 ? integers[index] : integers[index / 2] >> (index % 2 * 4) & 15);
}

// A quantized weight from one of its outputs on, whose scales and zero points are stored as `Scale`.
template <size_t kBits, class Scale>
class QuantizedMatrix {
 public:
  QuantizedMatrix(const Weight& weight, size_t first_output) : weight_(weight), first_output_(first_output) {}

  float zero_point() const { return weight_.zero_point; }
  size_t block_of(size_t input) const { return input / weight_.block_size; }

  const uint8_t* row(size_t input) const {
    return static_cast<const uint8_t*>(weight_.data) + (input * weight_.outputs + first_output_) * kBits / 8;
  }
  const Scale* scales(size_t block) const { return numbers(weight_.scales, block); }
  // Null where all zero points are zero_point().
  const Scale* zero_points(size_t block) const {
    return weight_.zero_points == nullptr ? nullptr : numbers(weight_.zero_points, block);
  }

 private:
  const Scale* numbers(const void* stored, size_t block) const {
    return static_cast<const Scale*>(stored) + block * weight_.outputs + first_output_;
  }

  const Weight& weight_;
  const size_t first_output_;
};

// Adds some rows of one block of a quantized weight to y.
template <class V, size_t kBits, class Scale>
void add_quantized_block(const QuantizedMatrix<kBits, Scale>& matrix, const WeightRows& add, size_t outputs, float* y) {
  using Float = typename V::Float;
  constexpr size_t kStep = kQuantizedVectors * V::kWidth;
  const size_t block = matrix.block_of(add.row[0]);
  const Scale* scales = matrix.scales(block);
  const Scale* zero_points = matrix.zero_points(block);
  const Float minus_one = V::broadcast(-1.0f);
  const Float one = V::broadcast(1.0f);
  const Float common = V::broadcast(-matrix.zero_point());
  size_t c = 0;
  for (; c + kStep <= outputs; c += kStep) {
    Float minus_zero[kQuantizedVectors];
    Float sum[kQuantizedVectors];
    for (size_t v = 0; v < kQuantizedVectors; ++v) {
      sum[v] = V::broadcast(0.0f);
      minus_zero[v] = common;
      if (zero_points != nullptr) {
        minus_zero[v] = V::fma(V::load(zero_points + c + v * V::kWidth), minus_one, sum[v]);
      }
    }
    for (size_t i = 0; i < add.count; ++i) {
      const uint8_t* row = matrix.row(add.row[i]) + c * kBits / 8;
      const Float factor = V::broadcast(add.value[i]);
      for (size_t v = 0; v < kQuantizedVectors; ++v) {
        const Float integers = V::template integers<kBits>(row + v * V::kWidth * kBits / 8);
        sum[v] = V::fma(factor, V::fma(integers, one, minus_zero[v]), sum[v]);
      }
    }
    for (size_t v = 0; v < kQuantizedVectors; ++v) {
      float* target = y + c + v * V::kWidth;
      V::store(target, V::fma(V::load(scales + c + v * V::kWidth), sum[v], V::load(target)));
    }
  }
  for (; c < outputs; ++c) {
    const float zero_point = zero_points == nullptr ? matrix.zero_point() : V::one(zero_points + c);
    float sum = 0.0f;
    for (size_t i = 0; i < add.count; ++i) {
      sum += add.value[i] * (integer_at<kBits>(matrix.row(add.row[i]), c) - zero_point);
    }
    y[c] += V::one(scales + c) * sum;
  }
}

template <class V, size_t kBits, class Scale>
void add_quantized_rows_by(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                           size_t outputs, float* y) {
  const QuantizedMatrix<kBits, Scale> matrix(weight, first_output);
  for (size_t i = 0; i < next.count; ++i) {
    const uint8_t* row = matrix.row(next.row[i]);
    for (size_t at = 0; at < outputs * kBits / 8; at += kCacheLine) V::prefetch(row + at);
  }
  for (size_t start = 0, end = 0; start < add.count; start = end) {
    while (end < add.count && matrix.block_of(add.row[end]) == matrix.block_of(add.row[start])) ++end;
    add_quantized_block<V>(matrix, {add.row + start, add.value + start, end - start}, outputs, y);
  }
}

template <class V, size_t kBits, class Scale>
void pack_quantized_tile_by(const Weight& weight, const WeightBlock& part, float* tile, PrefetchSchedule& next) {
  using Float = typename V::Float;
  constexpr size_t kTileOutputs = kTileVectors * V::kWidth;
  const QuantizedMatrix<kBits, Scale> matrix(weight, part.first_output);
  const Float one = V::broadcast(1.0f);
  const Float nothing = V::broadcast(0.0f);
  float scales[kTileOutputs];
  float minus_zero[kTileOutputs];
  for (size_t k = 0; k < part.inputs; ++k, tile += kTileOutputs) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<V>(next);
    const size_t input = part.first_input + k;
    const size_t block = matrix.block_of(input);
    if (k == 0 || block != matrix.block_of(input - 1)) {
      const Scale* zero_points = matrix.zero_points(block);
      for (size_t c = 0; c < part.outputs; ++c) {
        scales[c] = V::one(matrix.scales(block) + c);
        minus_zero[c] = -(zero_points == nullptr ? matrix.zero_point() : V::one(zero_points + c));
      }
    }
    const uint8_t* row = matrix.row(input);
    size_t c = 0;
    for (; c + V::kWidth <= part.outputs; c += V::kWidth) {
      const Float integers = V::template integers<kBits>(row + c * kBits / 8);
      const Float shifted = V::fma(integers, one, V::load(minus_zero + c));
      V::store(tile + c, V::fma(shifted, V::load(scales + c), nothing));
    }
    for (; c < part.outputs; ++c) tile[c] = (integer_at<kBits>(row, c) + minus_zero[c]) * scales[c];
  }
}

template <class V, size_t kBits>
void add_quantized_rows(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next,
                        size_t outputs, float* y) {
  const auto by =
      weight.half_scales ? add_quantized_rows_by<V, kBits, Float16> : add_quantized_rows_by<V, kBits, float>;
  by(weight, first_output, add, next, outputs, y);
}

template <class V, size_t kBits>
void pack_quantized_tile(const Weight& weight, const WeightBlock& part, float* tile, PrefetchSchedule& next) {
  const auto by =
      weight.half_scales ? pack_quantized_tile_by<V, kBits, Float16> : pack_quantized_tile_by<V, kBits, float>;
  by(weight, part, tile, next);
}

}  // namespace
}  // namespace nm_export
