// Some tokens at once: each vector of a row that is loaded is multiplied for all of them, with zeros too, and their
// sums stay in registers for a block of inputs. Part of product_kernels_impl.h.
#pragma once

#include "product/weight.h"

namespace nm_export {
namespace {

// Where the outputs of a row begin, and which input of the block it is.
template <class Stored>
struct GroupRow {
  const Stored* outputs;
  size_t input;
};

// y[t, .] += sum over r < rows of x[t, row(r).input] * row(r).outputs for kTokens tokens and kVectors vectors of
// outputs. x has kBlockInputs numbers a token, y `stride`. Rows are asked for once, in order.
template <class V, size_t kTokens, size_t kVectors, class Row>
void add_group_rows(size_t rows, const Row& row, const float* x, float* y, size_t stride) {
  using Float = typename V::Float;
  Float sum[kTokens][kVectors];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectors; ++i) sum[t][i] = V::load(y + t * stride + i * V::kWidth);
  }
  for (size_t r = 0; r < rows; ++r) {
    const auto [outputs, input] = row(r);
    Float weights[kVectors];
    for (size_t i = 0; i < kVectors; ++i) weights[i] = V::load(outputs + i * V::kWidth);
    for (size_t t = 0; t < kTokens; ++t) {
      const Float factor = V::broadcast(x[t * kBlockInputs + input]);
      for (size_t i = 0; i < kVectors; ++i) sum[t][i] = V::fma(factor, weights[i], sum[t][i]);
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectors; ++i) V::store(y + t * stride + i * V::kWidth, sum[t][i]);
  }
}

// The same for the first kMost of `tokens` > 0 tokens, or all of them if there are fewer.
template <class V, size_t kMost, size_t kVectors, class Row>
void add_rows_to_group(size_t tokens, size_t rows, const Row& row, const float* x, float* y, size_t stride) {
  if (tokens >= kMost) return add_group_rows<V, kMost, kVectors>(rows, row, x, y, stride);
  if constexpr (kMost > 1) add_rows_to_group<V, kMost - 1, kVectors>(tokens, rows, row, x, y, stride);
}

}  // namespace
}  // namespace nm_export
