// Few tokens that need nearly every row between them: each vector of a row is multiplied for several tokens when it is
// loaded, with zeros too. Part of product_kernels_impl.h.
//
// A weight is used just once in a block, so that a tile, which adds half as many products, would not pay for packing.
#pragma once

#include "product_kernels.h"
#include "tile_prefetch.h"
#include "token_group_impl.h"

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

// Fewer columns than are summed up together, from copies.
template <class Lanes, class Stored>
void add_shared_rest(const GroupRow<Stored>* rows, size_t row_count, size_t column, size_t count,
                     const BlockInput& input, float* y, size_t stride) {
  constexpr size_t kColumns = columns_together<Lanes>();
  float weights[kBlockChannels][kColumns] = {};
  for (size_t r = 0; r < row_count; ++r) {
    for (size_t c = 0; c < count; ++c) weights[r][c] = Lanes::one(rows[r].columns + column + c);
  }
  const auto copy = [&](size_t r) { return GroupRow<float>{weights[r], rows[r].channel}; };
  for (size_t t = 0; t < input.tokens; ++t, y += stride) {
    float sums[kColumns] = {};
    for (size_t c = 0; c < count; ++c) sums[c] = y[c];
    add_group_rows<Lanes, 1, kVectorsTogether>(row_count, copy, input.x + t * kBlockChannels, sums, kColumns);
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
  GroupRow<Stored> rows[kBlockChannels];
  for (size_t i = 0; i < add.count; ++i) {
    rows[i] = {first + add.row[i] * weight.columns, add.row[i] % kBlockChannels};
  }
  const Stored* next_rows[kBlockChannels];
  for (size_t i = 0; i < next.count; ++i) next_rows[i] = first + next.row[i] * weight.columns;

  NextPieces<Stored> pieces{};
  size_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) {
    const size_t place = c % kAtOnce;  // which the prefetches go along with
    if (place == 0) {
      const size_t wanted = columns - c < kAtOnce ? columns - c : kAtOnce;
      pieces = {next_rows, next.count, c, wanted, wanted / kColumns * add.count, 0};
    }
    const size_t step = place / kColumns * add.count;
    for (size_t t = 0; t < input.tokens; t += kTokens) {
      const auto row = [&](size_t r) {
        if (t == 0) prefetch_pieces<Lanes>(pieces, step + r + 1);
        return GroupRow<Stored>{rows[r].columns + c, rows[r].channel};
      };
      add_rows_to_group<Lanes, kTokens, kVectorsTogether>(input.tokens - t, add.count, row,
                                                          input.x + t * kBlockChannels, y + t * weight.columns + c,
                                                          weight.columns);
    }
  }
  if (c < columns) add_shared_rest<Lanes>(rows, add.count, c, columns - c, input, y + c, weight.columns);
}

}  // namespace
}  // namespace nm_export
