// The product kernels, written over a vector type `Lanes` that every instruction set defines.
//
// One token: kept rows are added to a long stretch of y, eight at a time, while the next eight are prefetched; memory
// sees a few long streams. Many tokens: a tile of weights is packed so that it fits the first-level cache, and every
// token walks the rows of its own kept channels with its sums in registers.
#pragma once

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "element_types.h"
#include "float_bits.h"
#include "product_kernels.h"

namespace nm_export {
namespace {

constexpr size_t kRowsAtOnce = 8;
constexpr size_t kCacheLine = 64;
constexpr int kTileVectors = 8;

// The position of the lowest bit that is set. There is one.
inline int lowest_bit(uint64_t mask) {
#ifdef _MSC_VER
  unsigned long position;
  _BitScanForward64(&position, mask);
  return static_cast<int>(position);
#else
  return __builtin_ctzll(mask);
#endif
}

inline float widened(BFloat16 number) { return float_of(static_cast<uint32_t>(number.bits) << 16); }

// Without a branch, which would be mispredicted for every second number.
inline size_t compact_one_by_one(const float* v, size_t first, size_t channels, size_t count, uint32_t* position,
                                 float* value) {
  for (size_t i = first; i < channels; ++i) {
    position[count] = static_cast<uint32_t>(i);
    value[count] = v[i];
    count += v[i] != 0 ? 1u : 0u;
  }
  return count;
}

template <class Lanes, class Stored>
void add_one_row(const Stored* row, float value, size_t columns, float* y) {
  const typename Lanes::Float factor = Lanes::broadcast(value);
  size_t c = 0;
  for (; c + Lanes::kWidth <= columns; c += Lanes::kWidth) {
    Lanes::store(y + c, Lanes::fma(factor, Lanes::load(row + c), Lanes::load(y + c)));
  }
  for (; c < columns; ++c) y[c] += value * Lanes::one(row + c);
}

template <class Lanes, class Stored>
void add_eight_rows(const Stored* const* row, const Stored* const* next, const float* value, size_t columns, float* y) {
  typename Lanes::Float factor[kRowsAtOnce];
  for (size_t i = 0; i < kRowsAtOnce; ++i) factor[i] = Lanes::broadcast(value[i]);
  constexpr size_t kPerLine = kCacheLine / sizeof(Stored);
  size_t c = 0;
  for (; c + kPerLine <= columns; c += kPerLine) {
    for (size_t i = 0; i < kRowsAtOnce; ++i) Lanes::prefetch(next[i] + c);
    for (size_t v = c; v < c + kPerLine; v += Lanes::kWidth) {
      typename Lanes::Float sum = Lanes::load(y + v);
      for (size_t i = 0; i < kRowsAtOnce; ++i) sum = Lanes::fma(factor[i], Lanes::load(row[i] + v), sum);
      Lanes::store(y + v, sum);
    }
  }
  for (; c < columns; ++c) {
    float sum = y[c];
    for (size_t i = 0; i < kRowsAtOnce; ++i) sum += value[i] * Lanes::one(row[i] + c);
    y[c] = sum;
  }
}

template <class Lanes, class Stored>
void add_rows(const void* weight, size_t stride, const uint32_t* row, const float* value, size_t count, size_t columns,
              float* y) {
  const auto* first = static_cast<const Stored*>(weight);
  const Stored* rows[kRowsAtOnce];
  const Stored* next[kRowsAtOnce];
  size_t i = 0;
  for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) {
    for (size_t r = 0; r < kRowsAtOnce; ++r) {
      const size_t later = i + kRowsAtOnce + r;
      rows[r] = first + row[i + r] * stride;
      next[r] = later < count ? first + row[later] * stride : rows[r];
    }
    add_eight_rows<Lanes>(rows, next, value + i, columns, y);
  }
  for (; i < count; ++i) add_one_row<Lanes>(first + row[i] * stride, value[i], columns, y);
}

template <class Lanes, class Stored>
void pack_tile(const void* weight, size_t stride, size_t rows, size_t columns, float* tile) {
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  const auto* row = static_cast<const Stored*>(weight);
  for (size_t k = 0; k < rows; ++k, row += stride, tile += kTileColumns) {
    if (columns == kTileColumns) {
      for (size_t c = 0; c < kTileColumns; c += Lanes::kWidth) Lanes::store(tile + c, Lanes::load(row + c));
      continue;
    }
    size_t c = 0;
    for (; c + Lanes::kWidth <= columns; c += Lanes::kWidth) Lanes::store(tile + c, Lanes::load(row + c));
    for (; c < columns; ++c) tile[c] = Lanes::one(row + c);
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

inline void prefetch_some(Prefetch& next, size_t lines, void (*fetch)(const void*)) {
  for (; lines > 0 && next.rows > 0; --lines) {
    fetch(next.at + next.line * kCacheLine);
    if (++next.line == next.row_lines) {
      next.line = 0;
      next.at += next.stride;
      --next.rows;
    }
  }
}

template <class Lanes, int kVectors>
void add_tile_of(const float* tile, const TileInput& input, float* y, Prefetch& next) {
  using Float = typename Lanes::Float;
  constexpr size_t kTileColumns = kTileVectors * Lanes::kWidth;
  for (size_t t = 0; t < input.tokens; ++t, y += kTileColumns) {
    prefetch_some(next, next.lines_per_token, Lanes::prefetch_far);
    const float* x = input.x + t * kTileRows;
    Float sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = Lanes::broadcast(0.0f);
    for (uint64_t mask = input.masks[t]; mask != 0; mask &= mask - 1) {
      const auto k = static_cast<size_t>(lowest_bit(mask));
      const Float factor = Lanes::broadcast(x[k]);
      const float* row = tile + k * kTileColumns;
      for (int i = 0; i < kVectors; ++i) sum[i] = Lanes::fma(factor, Lanes::load(row + i * Lanes::kWidth), sum[i]);
    }
    for (int i = 0; i < kVectors; ++i) {
      float* target = y + i * Lanes::kWidth;
      Lanes::store(target, Lanes::add(Lanes::load(target), sum[i]));
    }
  }
}

template <class Lanes>
void add_tile(const float* tile, const TileInput& input, size_t columns, float* y, Prefetch& next) {
  static_assert(kTileVectors == 8, "one case for each number of vectors");
  switch ((columns + Lanes::kWidth - 1) / Lanes::kWidth) {
    case 1:
      return add_tile_of<Lanes, 1>(tile, input, y, next);
    case 2:
      return add_tile_of<Lanes, 2>(tile, input, y, next);
    case 3:
      return add_tile_of<Lanes, 3>(tile, input, y, next);
    case 4:
      return add_tile_of<Lanes, 4>(tile, input, y, next);
    case 5:
      return add_tile_of<Lanes, 5>(tile, input, y, next);
    case 6:
      return add_tile_of<Lanes, 6>(tile, input, y, next);
    case 7:
      return add_tile_of<Lanes, 7>(tile, input, y, next);
    default:
      return add_tile_of<Lanes, 8>(tile, input, y, next);
  }
}

template <class Lanes>
constexpr ProductKernels product_kernels() {
  return {kTileVectors * Lanes::kWidth,
          Lanes::compact,
          {add_rows<Lanes, float>, add_rows<Lanes, Float16>, add_rows<Lanes, BFloat16>},
          {pack_tile<Lanes, float>, pack_tile<Lanes, Float16>, pack_tile<Lanes, BFloat16>},
          pack_channels<Lanes>,
          add_tile<Lanes>};
}

}  // namespace
}  // namespace nm_export
