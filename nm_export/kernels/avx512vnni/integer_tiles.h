// Tiles of codes that many tokens multiply: four channels side by side, columns in order.
#pragma once

#include "avx512/integer_dots.h"
#include "tile_prefetch.h"

namespace nm_export {
namespace {

constexpr size_t kIntegerTileColumns = 256;  // 16 KiB: half of a first-level cache

// Vectors of columns that are summed up together for up to kTokensOfIntegerTiles tokens, as integers and as float32: half
// of the registers.
constexpr size_t kVectorsAtOnce = 2;
constexpr size_t kColumnsAtOnce = 16 * kVectorsAtOnce;

// Stores quarter q of the four vectors in turn `stride` * q bytes behind the target.
inline void store_quarters(uint8_t* target, size_t stride, const __m512i* v) {
  __m512i turned[4];
  turn_quarters(v, turned);
  for (size_t q = 0; q < 4; ++q) _mm512_store_si512(target + stride * q, turned[q]);
}

// Packs up to 64 bytes of each of four rows: 64 or 128 columns.
template <size_t kBits>
void pack_step(const uint8_t* const* rows, size_t offset, size_t bytes, uint8_t* target) {
  const Columns columns = interleaved(rows, offset, bytes);
  if (kBits == 8) {
    store_quarters(target, 64, columns.at);
    return;
  }
  const __m512i mask = _mm512_set1_epi8(15);
  for (size_t h = 0; h < 2; ++h) {
    __m512i v[4];
    for (size_t i = 0; i < 2; ++i) {
      const __m512i pairs = columns.at[h * 2 + i];
      const __m512i even = _mm512_and_si512(pairs, mask);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
      v[i * 2] = _mm512_unpacklo_epi32(even, odd);
      v[i * 2 + 1] = _mm512_unpackhi_epi32(even, odd);
    }
    store_quarters(target + h * 64, 128, v);
  }
}

template <size_t kBits>
void pack_integer_tile(const Weight& weight, const Part& part, uint8_t* tile, Prefetch& next) {
  constexpr size_t kStepBytes = 64;
  constexpr size_t kQuadBytes = kIntegerTileColumns * kQuad;
  const auto* codes = static_cast<const uint8_t*>(weight.data);
  const size_t bytes = part.columns * kBits / 8;
  for (size_t k = 0; k < part.rows; k += kQuad, tile += kQuadBytes) {
    prefetch_step<HalfNumbers>(next);
    const uint8_t* rows[kQuad];
    for (size_t i = 0; i < kQuad; ++i) {
      const size_t row = part.first_row + (k + i < part.rows ? k + i : k);
      rows[i] = codes + (row * weight.columns + part.first_column) * kBits / 8;
    }
    for (size_t at = 0; at < bytes; at += kStepBytes) {
      const size_t count = bytes - at < kStepBytes ? bytes - at : kStepBytes;
      pack_step<kBits>(rows, at, count, tile + at * 8 / kBits * kQuad);
    }
  }
}

// The groups of channels of a tile, and their scales and zero points for its columns.
template <class Scale>
struct GroupsOfTile {
  size_t count;
  size_t end_quad[kMostGroups];
  const Scale* scales[kMostGroups];
  const Scale* zero_points[kMostGroups];  // null where all are `zero_point`
  float zero_point;
};

template <class Scale>
GroupsOfTile<Scale> groups_of(const Weight& weight, const Part& part) {
  const size_t size = weight.block_size < kBlockChannels ? weight.block_size : kBlockChannels;
  GroupsOfTile<Scale> groups{};
  groups.zero_point = weight.zero_point;
  for (size_t k = 0; k < part.rows; k += size) {
    const size_t end = k + size < part.rows ? k + size : part.rows;
    const size_t at = (part.first_row + k) / weight.block_size * weight.columns + part.first_column;
    groups.end_quad[groups.count] = (end + kQuad - 1) / kQuad;
    groups.scales[groups.count] = static_cast<const Scale*>(weight.scales) + at;
    if (weight.zero_points != nullptr) {
      groups.zero_points[groups.count] = static_cast<const Scale*>(weight.zero_points) + at;
    }
    ++groups.count;
  }
  return groups;
}

// Adds up to kColumnsAtOnce columns from `column` on.
template <size_t kTokens, class Scale>
void add_columns(const uint8_t* codes, const GroupsOfTile<Scale>& groups, const RoundedValues* rounded, size_t column,
                 size_t columns, float* y) {
  __m512 total[kTokens][kVectorsAtOnce];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) total[t][v] = _mm512_loadu_ps(y + t * kIntegerTileColumns + v * 16);
  }
  size_t q = 0;
  for (size_t g = 0; g < groups.count; ++g) {
    __m512i sums[kTokens][kVectorsAtOnce];
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = _mm512_setzero_si512();
    }
    for (; q < groups.end_quad[g]; ++q, codes += kIntegerTileColumns * kQuad) {
      __m512i code[kVectorsAtOnce];
      for (size_t v = 0; v < kVectorsAtOnce; ++v) code[v] = _mm512_load_si512(codes + v * 64);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m512i values = _mm512_set1_epi32(static_cast<int>(rounded[t].quads[q]));
        for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], code[v], values);
      }
    }
    for (size_t v = 0; v < kVectorsAtOnce; ++v) {
      const __mmask16 lanes = lanes_of(v * 16, columns);
      const __m512 scale = load_numbers(groups.scales[g] + column + v * 16, lanes);
      __m512 zero_point = _mm512_set1_ps(groups.zero_point);
      if (groups.zero_points[g] != nullptr) zero_point = load_numbers(groups.zero_points[g] + column + v * 16, lanes);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m512 step = _mm512_mul_ps(_mm512_set1_ps(rounded[t].step[g]), scale);
        total[t][v] = sum_scaled(total[t][v], sums[t][v], zero_point, _mm512_set1_ps(rounded[t].sum[g]), step);
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) _mm512_storeu_ps(y + t * kIntegerTileColumns + v * 16, total[t][v]);
  }
}

template <class Scale>
void add_integer_tile_by(const Weight& weight, const Part& part, const uint8_t* tile, const RoundedValues* rounded,
                         size_t tokens, float* y, Prefetch& next) {
  using AddColumns = void (*)(const uint8_t*, const GroupsOfTile<Scale>&, const RoundedValues*, size_t, size_t, float*);
  constexpr AddColumns kAddColumns[kTokensOfIntegerTiles] = {add_columns<1, Scale>, add_columns<2, Scale>,
                                                             add_columns<3, Scale>, add_columns<4, Scale>};
  const GroupsOfTile<Scale> groups = groups_of<Scale>(weight, part);
  for (size_t t = 0; t < tokens; t += kTokensOfIntegerTiles) {
    const size_t count = tokens - t < kTokensOfIntegerTiles ? tokens - t : kTokensOfIntegerTiles;
    prefetch_step<HalfNumbers>(next);
    for (size_t c = 0; c < part.columns; c += kColumnsAtOnce) {
      kAddColumns[count - 1](tile + c * kQuad, groups, rounded + t, c, part.columns - c,
                             y + t * kIntegerTileColumns + c);
    }
  }
}

inline void add_integer_tile(const Weight& weight, const Part& part, const uint8_t* tile, const RoundedValues* rounded,
                             size_t tokens, float* y, Prefetch& next) {
  const auto add = weight.half_scales ? add_integer_tile_by<Float16> : add_integer_tile_by<float>;
  add(weight, part, tile, rounded, tokens, y, next);
}

}  // namespace
}  // namespace nm_export
