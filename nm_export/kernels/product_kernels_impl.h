// The product kernels, written over a vector type `Lanes` that every instruction set defines.
//
// What is prefetched comes to the second-level cache: the first level takes fewer lines at once and delivers a third
// less from memory, as measured.
//
// Few tokens: the rows of kept channels are added to a long stretch of y, eight at a time, while the next ones are
// prefetched; memory sees some long streams. Many tokens: a tile of weights is packed so that it fits the first-level
// cache, and every token walks the rows of its own kept channels there with its sums in registers.
#pragma once

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "code_kernels_impl.h"
#include "element_types.h"
#include "float_bits.h"
#include "product_kernels.h"
#include "shared_rows_impl.h"
#include "tile_prefetch.h"
#include "token_group_impl.h"

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

inline float widened(BFloat16 number) { return float_of(static_cast<uint32_t>(number.bits) << 16); }

// By dense tiles, so many tokens and vectors of columns are summed up together: 16 sums of 32 registers, 8 of 16.
constexpr size_t kDenseTokens = 4;
template <class Lanes>
constexpr size_t dense_vectors() {
  return Lanes::kWidth == 16 ? 4 : 2;
}

// Without a branch, which would be mispredicted for every second number.
inline uint64_t compact_one_by_one(const float* v, size_t channels, size_t first, uint32_t* row, float* value) {
  uint64_t mask = 0;
  size_t count = 0;
  for (size_t i = 0; i < channels; ++i) {
    const bool kept = v[i] != 0;
    row[count] = static_cast<uint32_t>(first + i);
    value[count] = v[i];
    count += kept ? 1u : 0u;
    mask |= static_cast<uint64_t>(kept) << i;
  }
  return mask;
}

// Adds kRows rows to y, and prefetches the same columns of the next rows.
template <class Lanes, class Stored, size_t kRows>
void add_group(const Stored* const* row, const float* value, const Stored* const* next, size_t next_count,
               size_t columns, float* y) {
  typename Lanes::Float factor[kRows];
  for (size_t i = 0; i < kRows; ++i) factor[i] = Lanes::broadcast(value[i]);
  constexpr size_t kPerLine = kCacheLine / sizeof(Stored);
  size_t c = 0;
  for (; c + kPerLine <= columns; c += kPerLine) {
    if (c % (kLinesAtOnce * kPerLine) == 0) {
      const size_t end = c + kLinesAtOnce * kPerLine < columns ? c + kLinesAtOnce * kPerLine : columns;
      for (size_t i = 0; i < next_count; ++i) {
        for (size_t line = c; line < end; line += kPerLine) Lanes::prefetch(next[i] + line);
      }
    }
    for (size_t v = c; v < c + kPerLine; v += Lanes::kWidth) {
      typename Lanes::Float sum = Lanes::load(y + v);
      for (size_t i = 0; i < kRows; ++i) sum = Lanes::fma(factor[i], Lanes::load(row[i] + v), sum);
      Lanes::store(y + v, sum);
    }
  }
  // What is left is rounded as tiles round it.
  for (; c < columns; c += Lanes::kWidth) {
    const size_t count = columns - c < Lanes::kWidth ? columns - c : Lanes::kWidth;
    float numbers[Lanes::kWidth] = {};
    for (size_t j = 0; j < count; ++j) numbers[j] = y[c + j];
    typename Lanes::Float sum = Lanes::load(numbers);
    for (size_t i = 0; i < kRows; ++i) {
      for (size_t j = 0; j < count; ++j) numbers[j] = Lanes::one(row[i] + c + j);
      sum = Lanes::fma(factor[i], Lanes::load(numbers), sum);
    }
    Lanes::store(numbers, sum);
    for (size_t j = 0; j < count; ++j) y[c + j] = numbers[j];
  }
}

template <class Lanes, class Stored>
void add_rows(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns, float* y) {
  using AddGroup = void (*)(const Stored* const*, const float*, const Stored* const*, size_t, size_t, float*);
  constexpr AddGroup kAddGroups[kRowsAtOnce] = {add_group<Lanes, Stored, 1>, add_group<Lanes, Stored, 2>,
                                                add_group<Lanes, Stored, 3>, add_group<Lanes, Stored, 4>,
                                                add_group<Lanes, Stored, 5>, add_group<Lanes, Stored, 6>,
                                                add_group<Lanes, Stored, 7>, add_group<Lanes, Stored, 8>};
  const auto* first = static_cast<const Stored*>(weight.data) + first_column;
  const size_t stride = weight.columns;
  const size_t groups = (add.count + kRowsAtOnce - 1) / kRowsAtOnce;
  const Stored* rows[kRowsAtOnce];
  const Stored* next_rows[kBlockChannels];
  size_t fetched = 0;
  for (size_t g = 0; g < groups; ++g) {
    const size_t start = g * kRowsAtOnce;
    const size_t count = add.count - start < kRowsAtOnce ? add.count - start : kRowsAtOnce;
    for (size_t i = 0; i < count; ++i) rows[i] = first + add.row[start + i] * stride;
    const size_t end = next.count * (g + 1) / groups;  // the prefetches are spread evenly
    size_t next_count = 0;
    while (fetched < end) next_rows[next_count++] = first + next.row[fetched++] * stride;
    kAddGroups[count - 1](rows, add.value + start, next_rows, next_count, columns, y);
  }
}

template <class Lanes, class Stored>
void pack_tile(const Weight& weight, const Part& part, float* tile, Prefetch& next) {
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  const auto* row = static_cast<const Stored*>(weight.data) + part.first_row * weight.columns + part.first_column;
  for (size_t k = 0; k < part.rows; ++k, row += weight.columns, tile += kTileColumns) {
    if (k % kPackedRowsPerStep == 0) prefetch_step<Lanes>(next);
    size_t c = 0;
    for (; c + Lanes::kWidth <= part.columns; c += Lanes::kWidth) Lanes::store(tile + c, Lanes::load(row + c));
    for (; c < part.columns; ++c) tile[c] = Lanes::one(row + c);
  }
}

template <class Lanes>
uint64_t pack_channels(const float* v, size_t channels, float* x) {
  uint64_t mask = 0;
  size_t i = 0;
  for (; i + Lanes::kWidth <= channels; i += Lanes::kWidth) {
    const typename Lanes::Float lanes = Lanes::load(v + i);
    Lanes::store(x + i, lanes);
    mask |= static_cast<uint64_t>(Lanes::nonzero(lanes)) << i;
  }
  for (; i < channels; ++i) {
    x[i] = v[i];
    mask |= static_cast<uint64_t>(v[i] != 0) << i;
  }
  return mask;
}

template <class Lanes, size_t kVectors>
void add_tile_of(const float* tile, const BlockInput& input, float* y, Prefetch& next) {
  using Float = typename Lanes::Float;
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  for (size_t t = 0; t < input.tokens; ++t, y += kTileColumns) {
    prefetch_step<Lanes>(next);
    const float* x = input.x + t * kBlockChannels;
    Float sum[kVectors];
    for (size_t i = 0; i < kVectors; ++i) sum[i] = Lanes::load(y + i * Lanes::kWidth);
    for (uint64_t mask = input.masks[t]; mask != 0; mask &= mask - 1) {
      const size_t k = lowest_bit(mask);
      const Float factor = Lanes::broadcast(x[k]);
      const float* row = tile + k * kTileColumns;
      for (size_t i = 0; i < kVectors; ++i) sum[i] = Lanes::fma(factor, Lanes::load(row + i * Lanes::kWidth), sum[i]);
    }
    for (size_t i = 0; i < kVectors; ++i) Lanes::store(y + i * Lanes::kWidth, sum[i]);
  }
}

template <class Lanes>
void add_tile(const float* tile, const BlockInput& input, size_t columns, float* y, Prefetch& next) {
  using AddTile = void (*)(const float*, const BlockInput&, float*, Prefetch&);
  constexpr AddTile kAddTiles[kTileVectors] = {add_tile_of<Lanes, 1>, add_tile_of<Lanes, 2>, add_tile_of<Lanes, 3>,
                                               add_tile_of<Lanes, 4>, add_tile_of<Lanes, 5>, add_tile_of<Lanes, 6>,
                                               add_tile_of<Lanes, 7>, add_tile_of<Lanes, 8>};
  kAddTiles[(columns - 1) / Lanes::kWidth](tile, input, y, next);
}

template <class Lanes>
void add_dense_tile(const float* tile, const BlockInput& input, size_t columns, float* y, Prefetch& next) {
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  constexpr size_t kVectors = dense_vectors<Lanes>();
  for (size_t t = 0; t < input.tokens; t += kDenseTokens) {
    for (size_t i = t; i < t + kDenseTokens && i < input.tokens; ++i) prefetch_step<Lanes>(next);
    for (size_t c = 0; c < columns; c += kVectors * Lanes::kWidth) {
      const auto row = [&](size_t k) { return GroupRow<float>{tile + k * kTileColumns + c, k}; };
      add_rows_to_group<Lanes, kDenseTokens, kVectors>(input.tokens - t, input.channels, row,
                                                       input.x + t * kBlockChannels, y + t * kTileColumns + c,
                                                       kTileColumns);
    }
  }
}

template <class Lanes>
constexpr ProductKernels product_kernels() {
  return {Lanes::compact,
          {add_rows<Lanes, float>, add_rows<Lanes, Float16>, add_rows<Lanes, BFloat16>,
           add_code_rows<Lanes, 8>, add_code_rows<Lanes, 4>},
          tokens_together<Lanes>(),
          {add_shared_rows<Lanes, float>, add_shared_rows<Lanes, Float16>, add_shared_rows<Lanes, BFloat16>},
          kTileVectors * Lanes::kWidth,
          {pack_tile<Lanes, float>, pack_tile<Lanes, Float16>, pack_tile<Lanes, BFloat16>,
           pack_code_tile<Lanes, 8>, pack_code_tile<Lanes, 4>},
          pack_channels<Lanes>,
          add_tile<Lanes>,
          add_dense_tile<Lanes>};
}

}  // namespace
}  // namespace nm_export
