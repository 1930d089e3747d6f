// Some tokens at once: each vector of a row that is loaded is multiplied for all of them, with zeros too, and their
// sums stay in registers for a block of channels. Part of product_kernels_impl.h.
#pragma once

#include "product_kernels.h"

namespace nm_export {
namespace {

// Where the columns of a row begin, and which channel of the block it is.
template <class Stored>
struct GroupRow {
  const Stored* columns;
  size_t channel;
};

// y[t, .] += sum over r < rows of x[t, row(r).channel] * row(r).columns for kTokens tokens and kVectors vectors of
// columns. x has kBlockChannels numbers a token, y `stride`. Rows are asked for once, in order.
template <class Lanes, size_t kTokens, size_t kVectors, class Row>
void add_group_rows(size_t rows, const Row& row, const float* x, float* y, size_t stride) {
  using Float = typename Lanes::Float;
  Float sum[kTokens][kVectors];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectors; ++i) sum[t][i] = Lanes::load(y + t * stride + i * Lanes::kWidth);
  }
  for (size_t r = 0; r < rows; ++r) {
    const auto [columns, channel] = row(r);
    Float weights[kVectors];
    for (size_t i = 0; i < kVectors; ++i) weights[i] = Lanes::load(columns + i * Lanes::kWidth);
    for (size_t t = 0; t < kTokens; ++t) {
      const Float factor = Lanes::broadcast(x[t * kBlockChannels + channel]);
      for (size_t i = 0; i < kVectors; ++i) sum[t][i] = Lanes::fma(factor, weights[i], sum[t][i]);
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectors; ++i) Lanes::store(y + t * stride + i * Lanes::kWidth, sum[t][i]);
  }
}

// The same for the first kMost of `tokens` > 0 tokens, or all of them if there are fewer.
template <class Lanes, size_t kMost, size_t kVectors, class Row>
void add_rows_to_group(size_t tokens, size_t rows, const Row& row, const float* x, float* y, size_t stride) {
  if (tokens >= kMost) return add_group_rows<Lanes, kMost, kVectors>(rows, row, x, y, stride);
  if constexpr (kMost > 1) add_rows_to_group<Lanes, kMost - 1, kVectors>(tokens, rows, row, x, y, stride);
}

}  // namespace
}  // namespace nm_export
