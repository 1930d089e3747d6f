// Few tokens that need nearly every row between them: each vector of a row is multiplied for all tokens when it is
// loaded, with zeros too. Part of product_kernels_impl.h.
//
// A weight is used just once in a block, so that a tile, which adds half as many products, would not pay for packing.
#pragma once

#include "product_kernels.h"
#include "tile_prefetch.h"

namespace nm_export {
namespace {

// So many tokens and vectors of columns are summed up together: 16 sums of 32 registers, 8 of 16.
template <class Lanes>
constexpr size_t tokens_together() {
  return Lanes::kWidth == 16 ? 8 : 4;
}
constexpr size_t kVectorsTogether = 2;
template <class Lanes>
constexpr size_t columns_together() {
  return kVectorsTogether * Lanes::kWidth;
}

// The rows of a block, and where the value of each is among those of a token.
template <class Stored>
struct SharedRows {
  const Stored* at[kBlockChannels];
  size_t channel[kBlockChannels];
  size_t count;
};

// Pieces of the rows that are needed next, asked for evenly over `steps` steps.
template <class Stored>
struct NextPieces {
  const Stored* const* at;
  size_t count;
  size_t column;
  size_t columns;
  size_t steps;
  size_t done;
};

template <class Lanes, class Stored>
void prefetch_pieces(NextPieces<Stored>& next, size_t step) {
  for (; next.done * next.steps < next.count * step; ++next.done) {
    const Stored* piece = next.at[next.done] + next.column;
    for (size_t c = 0; c < next.columns; c += kCacheLine / sizeof(Stored)) Lanes::prefetch(piece + c);
  }
}

template <class Lanes, size_t kTokens, class Stored>
void add_shared_columns(const SharedRows<Stored>& rows, size_t column, const float* x, NextPieces<Stored>& next,
                        size_t step, float* y, size_t stride) {
  using Float = typename Lanes::Float;
  Float sum[kTokens][kVectorsTogether];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectorsTogether; ++i) sum[t][i] = Lanes::load(y + t * stride + i * Lanes::kWidth);
  }
  for (size_t r = 0; r < rows.count; ++r) {
    prefetch_pieces<Lanes>(next, step + r + 1);
    Float weights[kVectorsTogether];
    for (size_t i = 0; i < kVectorsTogether; ++i) weights[i] = Lanes::load(rows.at[r] + column + i * Lanes::kWidth);
    for (size_t t = 0; t < kTokens; ++t) {
      const Float factor = Lanes::broadcast(x[t * kBlockChannels + rows.channel[r]]);
      for (size_t i = 0; i < kVectorsTogether; ++i) sum[t][i] = Lanes::fma(factor, weights[i], sum[t][i]);
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectorsTogether; ++i) Lanes::store(y + t * stride + i * Lanes::kWidth, sum[t][i]);
  }
}

// Of up to kMost tokens.
template <class Lanes, size_t kMost, class Stored>
void add_shared_tokens(size_t tokens, const SharedRows<Stored>& rows, size_t column, const float* x,
                       NextPieces<Stored>& next, size_t step, float* y, size_t stride) {
  if (tokens == kMost) return add_shared_columns<Lanes, kMost>(rows, column, x, next, step, y, stride);
  if constexpr (kMost > 1) add_shared_tokens<Lanes, kMost - 1>(tokens, rows, column, x, next, step, y, stride);
}

// Fewer columns than are summed up together, from copies.
template <class Lanes, class Stored>
void add_shared_rest(const SharedRows<Stored>& rows, size_t column, size_t count, const BlockInput& input, float* y,
                     size_t stride) {
  constexpr size_t kColumns = columns_together<Lanes>();
  float weights[kBlockChannels][kColumns] = {};
  SharedRows<float> copies;
  copies.count = rows.count;
  for (size_t r = 0; r < rows.count; ++r) {
    for (size_t c = 0; c < count; ++c) weights[r][c] = Lanes::one(rows.at[r] + column + c);
    copies.at[r] = weights[r];
    copies.channel[r] = rows.channel[r];
  }
  NextPieces<float> none{};
  for (size_t t = 0; t < input.tokens; ++t, y += stride) {
    float sums[kColumns] = {};
    for (size_t c = 0; c < count; ++c) sums[c] = y[c];
    add_shared_columns<Lanes, 1>(copies, 0, input.x + t * kBlockChannels, none, 0, sums, kColumns);
    for (size_t c = 0; c < count; ++c) y[c] = sums[c];
  }
}

template <class Lanes, class Stored>
void add_shared_rows(const Weight& weight, size_t first_column, const Rows& add, const BlockInput& input,
                     const Rows& next, size_t columns, float* y) {
  constexpr size_t kTokens = tokens_together<Lanes>();
  constexpr size_t kColumns = columns_together<Lanes>();
  constexpr size_t kAtOnce = kLinesAtOnce * kCacheLine / sizeof(Stored);
  const auto* first = static_cast<const Stored*>(weight.data) + first_column;
  SharedRows<Stored> rows;
  rows.count = add.count;
  for (size_t i = 0; i < add.count; ++i) {
    rows.at[i] = first + add.row[i] * weight.columns;
    rows.channel[i] = add.row[i] % kBlockChannels;
  }
  const Stored* next_rows[kBlockChannels];
  for (size_t i = 0; i < next.count; ++i) next_rows[i] = first + next.row[i] * weight.columns;

  NextPieces<Stored> pieces{};
  NextPieces<Stored> none{};
  size_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) {
    const size_t place = c % kAtOnce;  // which the prefetches go along with
    if (place == 0) {
      const size_t wanted = columns - c < kAtOnce ? columns - c : kAtOnce;
      pieces = {next_rows, next.count, c, wanted, wanted / kColumns * rows.count, 0};
    }
    const size_t step = place / kColumns * rows.count;
    for (size_t t = 0; t < input.tokens; t += kTokens) {
      const size_t tokens = input.tokens - t < kTokens ? input.tokens - t : kTokens;
      add_shared_tokens<Lanes, kTokens>(tokens, rows, c, input.x + t * kBlockChannels, t == 0 ? pieces : none, step,
                                        y + t * weight.columns + c, weight.columns);
    }
  }
  if (c < columns) add_shared_rest<Lanes>(rows, c, columns - c, input, y + c, weight.columns);
}

}  // namespace
}  // namespace nm_export
