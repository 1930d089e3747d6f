// Few tokens that need nearly every row between them: each vector of a row is multiplied for several tokens when it is
// loaded, with zeros too. Part of product_kernels_impl.h.
//
// A weight is used just once in a block, so that a tile, which adds half as many products, would not pay for packing.
#pragma once

#include "product/prefetch_impl.h"
#include "product/token_group_impl.h"
#include "product/weight.h"

namespace nm_export {
namespace {

// So many tokens and vectors of outputs are summed up together: 16 sums of 32 registers, 8 of 16.
template <class V>
constexpr size_t union_tokens() {
  return V::kWidth == 16 ? 8 : 4;
}
constexpr size_t kUnionVectors = 2;
template <class V>
constexpr size_t union_outputs() {
  return kUnionVectors * V::kWidth;
}

// Fewer outputs than are summed up together, from copies.
template <class V, class Stored>
void add_union_rest(const GroupRow<Stored>* rows, size_t row_count, size_t output, size_t count,
                    const TokenBlock& tokens, float* y, size_t stride) {
  constexpr size_t kOutputs = union_outputs<V>();
  float weights[kBlockInputs][kOutputs] = {};
  for (size_t r = 0; r < row_count; ++r) {
    for (size_t c = 0; c < count; ++c) weights[r][c] = V::one(rows[r].outputs + output + c);
  }
  const auto copy = [&](size_t r) { return GroupRow<float>{weights[r], rows[r].input}; };
  for (size_t t = 0; t < tokens.tokens; ++t, y += stride) {
    float sums[kOutputs] = {};
    for (size_t c = 0; c < count; ++c) sums[c] = y[c];
    add_group_rows<V, 1, kUnionVectors>(row_count, copy, tokens.x + t * kBlockInputs, sums, kOutputs);
    for (size_t c = 0; c < count; ++c) y[c] = sums[c];
  }
}

template <class V, class Stored>
void add_union_rows(const Weight& weight, size_t first_output, const WeightRows& add, const TokenBlock& tokens,
                    const WeightRows& next, size_t outputs, float* y) {
  constexpr size_t kTokens = union_tokens<V>();
  constexpr size_t kOutputs = union_outputs<V>();
  constexpr size_t kAtOnce = kLinesAtOnce * kCacheLine / sizeof(Stored);
  const auto* first = static_cast<const Stored*>(weight.data) + first_output;
  GroupRow<Stored> rows[kBlockInputs];
  for (size_t i = 0; i < add.count; ++i) {
    rows[i] = {first + add.row[i] * weight.outputs, add.row[i] % kBlockInputs};
  }
  const Stored* next_rows[kBlockInputs];
  for (size_t i = 0; i < next.count; ++i) next_rows[i] = first + next.row[i] * weight.outputs;

  RowPrefetchSchedule<Stored> schedule{};
  size_t c = 0;
  for (; c + kOutputs <= outputs; c += kOutputs) {
    const size_t place = c % kAtOnce;  // which the prefetches go along with
    if (place == 0) {
      const size_t wanted = outputs - c < kAtOnce ? outputs - c : kAtOnce;
      schedule = {next_rows, next.count, c, wanted, wanted / kOutputs * add.count, 0};
    }
    const size_t step = place / kOutputs * add.count;
    for (size_t t = 0; t < tokens.tokens; t += kTokens) {
      const auto row = [&](size_t r) {
        if (t == 0) prefetch_rows<V>(schedule, step + r + 1);
        return GroupRow<Stored>{rows[r].outputs + c, rows[r].input};
      };
      add_rows_to_group<V, kTokens, kUnionVectors>(tokens.tokens - t, add.count, row, tokens.x + t * kBlockInputs,
                                                   y + t * weight.outputs + c, weight.outputs);
    }
  }
  if (c < outputs) add_union_rest<V>(rows, add.count, c, outputs - c, tokens, y + c, weight.outputs);
}

}  // namespace
}  // namespace nm_export
