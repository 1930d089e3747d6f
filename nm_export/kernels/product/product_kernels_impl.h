// The kernels of float products, written once over a vector class V (isa/vector_concept.h). For the kernels.cpp of an
// instruction set, which includes this after its vector.h.
//
// What is prefetched comes to the second-level cache: the first level takes fewer lines at once and delivers a third
// less from memory, as measured. (Rows of integers, which are shorter, come to the first level: int8_kernels_impl.h.)
//
// Few tokens: the rows of kept inputs are added to many outputs at once, eight rows at a time, while the next ones are
// prefetched; memory sees some long streams.
//
// Many tokens: a block of 64 inputs is packed to a tile that fits the first-level cache, as float32 whatever the weight
// is, and every token walks the rows of its own kept inputs there with its sums in registers:
//
//                  tile_outputs = 8 vectors, contiguous
//                 +---------+---------+---   ---+
//     input k     | vector  | vector  |   ...   |   kept by the token: bit k of its mask is set
//     input k + 1 |         |         |   ...   |   pruned: not read
//        ...
//     input k + 63
//                 +---------+---------+---   ---+
//                     sums[8] += x[t, k] * row k
//
// Packing also removes the conflicts of rows that lie a power of two apart. The tile is written by rows, so a weight
// that is not float32, or is quantized, is widened once and not once for each token.
//
// Nothing here guarantees the order of equal sums but this: a token's products are added in the order of the inputs,
// one block of them after the other, in all of these loops.
#pragma once

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "isa/vector_concept.h"
#include "product/gather_union_impl.h"
#include "product/prefetch_impl.h"
#include "product/product_kernels.h"
#include "product/quantized_kernels_impl.h"
#include "product/token_group_impl.h"

namespace nm_export {
namespace {

constexpr size_t kRowsAtOnce = 8;

// The position of the lowest bit that is set. There is one.
inline size_t lowest_bit(uint64_t mask) {
#ifdef _MSC_VER
  unsigned long position;
  _BitScanForward64(&position, mask);
  return position;
#else
  return static_cast<size_t>(__builtin_ctzll(mask));
#endif
}

// By dense tiles, so many tokens and vectors of outputs are summed up together: 16 sums of 32 registers, 8 of 16.
constexpr size_t kDenseTokens = 4;
template <class V>
constexpr size_t dense_vectors() {
  return V::kWidth == 16 ? 4 : 2;
}

// Without a branch, which would be mispredicted for every second number.
inline uint64_t gather_one_by_one(const float* v, size_t inputs, size_t first, uint32_t* row, float* value) {
  uint64_t mask = 0;
  size_t count = 0;
  for (size_t i = 0; i < inputs; ++i) {
    const bool kept = v[i] != 0;
    row[count] = static_cast<uint32_t>(first + i);
    value[count] = v[i];
    count += kept ? 1u : 0u;
    mask |= static_cast<uint64_t>(kept) << i;
  }
  return mask;
}

template <class V>
uint64_t gather_nonzero(const float* v, size_t inputs, size_t first, uint32_t* row, float* value) {
  uint64_t mask = 0;
  size_t count = 0;
  size_t i = 0;
  if constexpr (V::kCompresses) {
    for (; i + V::kWidth <= inputs; i += V::kWidth) {
      const typename V::Float x = V::load(v + i);
      const uint32_t kept = V::nonzero(x);
      const auto number = V::add_int(V::first_integers(), V::broadcast_int(static_cast<int>(first + i)));
      V::store(value + count, V::compress(kept, x));
      V::store_int(reinterpret_cast<int32_t*>(row + count), V::compress_int(kept, number));
      count += static_cast<size_t>(V::count_bits(kept));
      mask |= static_cast<uint64_t>(kept) << i;
    }
    if (i == inputs) return mask;
  }
  return mask | gather_one_by_one(v + i, inputs - i, first + i, row + count, value + count) << i;
}

// Adds kRows rows to y, and prefetches the same outputs of the next rows.
template <class V, class Stored, size_t kRows>
void add_group(const Stored* const* row, const float* value, const Stored* const* next, size_t next_count,
               size_t outputs, float* y) {
  typename V::Float factor[kRows];
  for (size_t i = 0; i < kRows; ++i) factor[i] = V::broadcast(value[i]);
  constexpr size_t kPerLine = kCacheLine / sizeof(Stored);
  size_t c = 0;
  for (; c + kPerLine <= outputs; c += kPerLine) {
    if (c % (kLinesAtOnce * kPerLine) == 0) {
      const size_t end = c + kLinesAtOnce * kPerLine < outputs ? c + kLinesAtOnce * kPerLine : outputs;
      for (size_t i = 0; i < next_count; ++i) {
        for (size_t line = c; line < end; line += kPerLine) V::prefetch(next[i] + line);
      }
    }
    for (size_t v = c; v < c + kPerLine; v += V::kWidth) {
      typename V::Float sum = V::load(y + v);
      for (size_t i = 0; i < kRows; ++i) sum = V::fma(factor[i], V::load(row[i] + v), sum);
      V::store(y + v, sum);
    }
  }
  // What is left is rounded as tiles round it.
  for (; c < outputs; c += V::kWidth) {
    const size_t count = outputs - c < V::kWidth ? outputs - c : V::kWidth;
    float numbers[V::kWidth] = {};
    for (size_t j = 0; j < count; ++j) numbers[j] = y[c + j];
    typename V::Float sum = V::load(numbers);
    for (size_t i = 0; i < kRows; ++i) {
      for (size_t j = 0; j < count; ++j) numbers[j] = V::one(row[i] + c + j);
      sum = V::fma(factor[i], V::load(numbers), sum);
    }
    V::store(numbers, sum);
    for (size_t j = 0; j < count; ++j) y[c + j] = numbers[j];
  }
}

template <class V, class Stored>
void add_rows(const Weight& weight, size_t first_output, const WeightRows& add, const WeightRows& next, size_t outputs,
              float* y) {
  using AddGroup = void (*)(const Stored* const*, const float*, const Stored* const*, size_t, size_t, float*);
  constexpr AddGroup kAddGroups[kRowsAtOnce] = {
      add_group<V, Stored, 1>, add_group<V, Stored, 2>, add_group<V, Stored, 3>, add_group<V, Stored, 4>,
      add_group<V, Stored, 5>, add_group<V, Stored, 6>, add_group<V, Stored, 7>, add_group<V, Stored, 8>};
  const auto* first = static_cast<const Stored*>(weight.data) + first_output;
  const size_t stride = weight.outputs;
  const size_t groups = (add.count + kRowsAtOnce - 1) / kRowsAtOnce;
  const Stored* rows[kRowsAtOnce];
  const Stored* next_rows[kBlockInputs];
  size_t fetched = 0;
  for (size_t g = 0; g < groups; ++g) {
    const size_t start = g * kRowsAtOnce;
    const size_t count = add.count - start < kRowsAtOnce ? add.count - start : kRowsAtOnce;
    for (size_t i = 0; i < count; ++i) rows[i] = first + add.row[start + i] * stride;
    const size_t end = next.count * (g + 1) / groups;  // the prefetches are spread evenly
    size_t next_count = 0;
    while (fetched < end) next_rows[next_count++] = first + next.row[fetched++] * stride;
    kAddGroups[count - 1](rows, add.value + start, next_rows, next_count, outputs, y);
  }
}

template <class V, class Stored>
void pack_tile(const Weight& weight, const WeightBlock& block, float* tile, PrefetchSchedule& next) {
  constexpr size_t kTileOutputs = kTileVectors * V::kWidth;
  const auto* row = static_cast<const Stored*>(weight.data) + block.first_input * weight.outputs + block.first_output;
  for (size_t k = 0; k < block.inputs; ++k, row += weight.outputs, tile += kTileOutputs) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<V>(next);
    size_t c = 0;
    for (; c + V::kWidth <= block.outputs; c += V::kWidth) V::store(tile + c, V::load(row + c));
    for (; c < block.outputs; ++c) tile[c] = V::one(row + c);
  }
}

template <class V>
uint64_t pack_inputs(const float* v, size_t inputs, float* x) {
  uint64_t mask = 0;
  size_t i = 0;
  for (; i + V::kWidth <= inputs; i += V::kWidth) {
    const typename V::Float values = V::load(v + i);
    V::store(x + i, values);
    mask |= static_cast<uint64_t>(V::nonzero(values)) << i;
  }
  for (; i < inputs; ++i) {
    x[i] = v[i];
    mask |= static_cast<uint64_t>(v[i] != 0) << i;
  }
  return mask;
}

template <class V, size_t kVectors>
void add_sparse_tile_of(const float* tile, const TokenBlock& tokens, float* y, PrefetchSchedule& next) {
  using Float = typename V::Float;
  constexpr size_t kTileOutputs = kTileVectors * V::kWidth;
  for (size_t t = 0; t < tokens.tokens; ++t, y += kTileOutputs) {
    prefetch_step<V>(next);
    const float* x = tokens.x + t * kBlockInputs;
    Float sum[kVectors];
    for (size_t i = 0; i < kVectors; ++i) sum[i] = V::load(y + i * V::kWidth);
    for (uint64_t mask = tokens.masks[t]; mask != 0; mask &= mask - 1) {
      const size_t k = lowest_bit(mask);
      const Float factor = V::broadcast(x[k]);
      const float* row = tile + k * kTileOutputs;
      for (size_t i = 0; i < kVectors; ++i) sum[i] = V::fma(factor, V::load(row + i * V::kWidth), sum[i]);
    }
    for (size_t i = 0; i < kVectors; ++i) V::store(y + i * V::kWidth, sum[i]);
  }
}

template <class V>
void add_sparse_tile(const float* tile, const TokenBlock& tokens, size_t outputs, float* y, PrefetchSchedule& next) {
  using AddTile = void (*)(const float*, const TokenBlock&, float*, PrefetchSchedule&);
  constexpr AddTile kAddTiles[kTileVectors] = {
      add_sparse_tile_of<V, 1>, add_sparse_tile_of<V, 2>, add_sparse_tile_of<V, 3>, add_sparse_tile_of<V, 4>,
      add_sparse_tile_of<V, 5>, add_sparse_tile_of<V, 6>, add_sparse_tile_of<V, 7>, add_sparse_tile_of<V, 8>};
  kAddTiles[(outputs - 1) / V::kWidth](tile, tokens, y, next);
}

template <class V>
void add_dense_tile(const float* tile, const TokenBlock& tokens, size_t outputs, float* y, PrefetchSchedule& next) {
  constexpr size_t kTileOutputs = kTileVectors * V::kWidth;
  constexpr size_t kVectors = dense_vectors<V>();
  for (size_t t = 0; t < tokens.tokens; t += kDenseTokens) {
    for (size_t i = t; i < t + kDenseTokens && i < tokens.tokens; ++i) prefetch_step<V>(next);
    for (size_t c = 0; c < outputs; c += kVectors * V::kWidth) {
      const auto row = [&](size_t k) { return GroupRow<float>{tile + k * kTileOutputs + c, k}; };
      add_rows_to_group<V, kDenseTokens, kVectors>(tokens.tokens - t, tokens.inputs, row, tokens.x + t * kBlockInputs,
                                                   y + t * kTileOutputs + c, kTileOutputs);
    }
  }
}

template <class V>
constexpr ProductKernels product_kernels() {
  static_assert(is_product_vector<V>(), "isa/vector_concept.h");
  return {gather_nonzero<V>,
          {add_rows<V, float>, add_rows<V, Float16>, add_rows<V, BFloat16>, add_quantized_rows<V, 8>,
           add_quantized_rows<V, 4>},
          union_tokens<V>(),
          {add_union_rows<V, float>, add_union_rows<V, Float16>, add_union_rows<V, BFloat16>},
          kTileVectors * V::kWidth,
          {pack_tile<V, float>, pack_tile<V, Float16>, pack_tile<V, BFloat16>, pack_quantized_tile<V, 8>,
           pack_quantized_tile<V, 4>},
          pack_inputs<V>,
          add_sparse_tile<V>,
          add_dense_tile<V>};
}

}  // namespace
}  // namespace nm_export
