// Tiles of codes that many tokens multiply: four channels side by side, columns in order.
#pragma once

#include "avx512/integer_dots.h"
#include "tile_prefetch.h"

namespace nm_export {
namespace {

constexpr size_t kIntegerTileColumns = 256;  // 16 KiB: half of a first-level cache

// Vectors of columns, and tokens, that are summed up together: each vector of codes that is loaded serves four tokens.
constexpr size_t kVectorsAtOnce = 4;
constexpr size_t kColumnsAtOnce = 16 * kVectorsAtOnce;

// Stores quarter q of the four vectors in turn `stride` * q bytes behind the target.
inline void store_quarters(uint8_t* target, size_t stride, const __m512i* v) {
  __m512 numbers[4];
  for (size_t i = 0; i < 4; ++i) numbers[i] = _mm512_castsi512_ps(v[i]);
  __m512 turned[4];
  turn_quarters(numbers, turned);
  for (size_t q = 0; q < 4; ++q) _mm512_store_si512(target + stride * q, _mm512_castps_si512(turned[q]));
}

// Packs up to 64 bytes of each of four rows: 64 or 128 columns.
template <size_t kBits, bool kSigned>
void pack_step(const uint8_t* const* rows, size_t offset, size_t bytes, uint8_t* target) {
  const Columns columns = interleaved(rows, offset, bytes);
  __m512i v[4];
  if (kBits == 8) {
    const __m512i flip = _mm512_set1_epi8(kSigned ? -128 : 0);
    for (size_t i = 0; i < 4; ++i) v[i] = _mm512_xor_si512(columns.at[i], flip);
    store_quarters(target, 64, v);
    return;
  }
  const __m512i flip = _mm512_set1_epi8(kSigned ? 8 : 0);
  const __m512i mask = _mm512_set1_epi8(15);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t i = 0; i < 2; ++i) {
      const __m512i pairs = columns.at[h * 2 + i];
      const __m512i even = low_bits(pairs, flip, mask);
      const __m512i odd = low_bits(_mm512_srli_epi16(pairs, 4), flip, mask);
      v[i * 2] = _mm512_unpacklo_epi32(even, odd);
      v[i * 2 + 1] = _mm512_unpackhi_epi32(even, odd);
    }
    store_quarters(target + h * 64, 128, v);
  }
}

template <size_t kBits, bool kSigned>
void pack_integer_tile(const Weight& weight, const Part& part, uint8_t* tile, Prefetch& next) {
  constexpr size_t kStepBytes = 64;
  constexpr size_t kQuadBytes = kIntegerTileColumns * kQuad;
  const auto* codes = static_cast<const uint8_t*>(weight.data);
  const size_t bytes = part.columns * kBits / 8;
  for (size_t k = 0; k < part.rows; k += kQuad, tile += kQuadBytes) {
    prefetch_step<ToSecondLevel>(next);
    const uint8_t* rows[kQuad];
    for (size_t i = 0; i < kQuad; ++i) {
      const size_t row = part.first_row + (k + i < part.rows ? k + i : k);
      rows[i] = codes + (row * weight.columns + part.first_column) * kBits / 8;
    }
    for (size_t offset = 0; offset < bytes; offset += kStepBytes) {
      const size_t count = bytes - offset < kStepBytes ? bytes - offset : kStepBytes;
      pack_step<kBits, kSigned>(rows, offset, count, tile + offset * 8 / kBits * kQuad);
    }
  }
}

template <size_t kBits, bool kSigned>
void pack_block_scales(const Weight& weight, const Part& part, BlockScales& scales) {
  const size_t first = part.first_row * weight.blocks + part.first_column / weight.block_size;
  const size_t count = (part.columns + weight.block_size - 1) / weight.block_size;
  for (size_t i = 0; i < part.rows; ++i) {
    _mm512_store_ps(scales.scale[i], load_scales(weight.scales + first + i * weight.blocks, count));
  }
  scales.is_symmetric = weight.zero_points == nullptr;
  scales.shift = unsigned_shift<kBits, kSigned>();
  if (scales.is_symmetric) return;
  for (size_t i = 0; i < part.rows; ++i) {
    load_zero_points<kBits, kSigned>(weight.zero_points, first + i * weight.blocks, count, scales.zero_point[i]);
  }
}

// What Rounder does.
inline void round_for_tiles(const BlockScales& scales, const Rows& kept, size_t first_channel, RoundedValues& rounded) {
  const auto product = [&](size_t i) {
    const float* scale = scales.scale[kept.row[i] - first_channel];
    return _mm512_mul_ps(_mm512_set1_ps(kept.value[i]), _mm512_load_ps(scale));
  };

  __m512i largest = _mm512_setzero_si512();
  for (size_t i = 0; i < kept.count; ++i) largest = larger(largest, product(i));
  const __m512 reciprocal = find_steps(largest, rounded);
  for (auto& quad : rounded.quads) _mm512_store_si512(quad, _mm512_setzero_si512());
  __m512i zero = _mm512_setzero_si512();
  for (size_t i = 0; i < kept.count; ++i) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(product(i), reciprocal));
    const size_t place = kept.row[i] - first_channel;
    uint32_t* const quad = rounded.quads[place / kQuad];
    const __m512i before = _mm512_load_si512(quad);
    _mm512_store_si512(quad, insert_byte(before, integers, static_cast<unsigned>(place % kQuad)));
    const __m512i zero_points = _mm512_load_si512(scales.zero_point[place]);
    zero = _mm512_add_epi32(zero, scales.is_symmetric ? integers : _mm512_mullo_epi32(integers, zero_points));
  }
  if (scales.is_symmetric) zero = _mm512_mullo_epi32(zero, _mm512_set1_epi32(scales.shift));
  _mm512_store_si512(rounded.zero, zero);
}

// kTokens tokens times kColumnsAtOnce columns, of which kSame vectors each are of one block.
template <size_t kTokens, size_t kSame>
void add_columns(const uint8_t* codes, const RoundedValues* rounded, size_t quads, size_t block, float* y) {
  constexpr size_t kBlocks = kVectorsAtOnce / kSame;
  __m512i sums[kTokens][kVectorsAtOnce];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = _mm512_setzero_si512();
  }
  size_t g = 0;
  do {
    __m512i code[kVectorsAtOnce];
    for (size_t v = 0; v < kVectorsAtOnce; ++v) code[v] = _mm512_load_si512(codes + v * 64);
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t b = 0; b < kBlocks; ++b) {
        const __m512i values = _mm512_set1_epi32(static_cast<int>(rounded[t].quads[g][block + b]));
        for (size_t v = b * kSame; v < (b + 1) * kSame; ++v) {
          sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], code[v], values);
        }
      }
    }
    codes += kIntegerTileColumns * kQuad;
  } while (++g < quads);
  for (size_t t = 0; t < kTokens; ++t, y += kIntegerTileColumns) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) {
      const size_t b = block + v / kSame;
      const __m512i sum = _mm512_sub_epi32(sums[t][v], _mm512_set1_epi32(rounded[t].zero[b]));
      add_to(y + v * 16, _mm512_mul_ps(_mm512_set1_ps(rounded[t].step[b]), _mm512_cvtepi32_ps(sum)));
    }
  }
}

template <size_t kSame>
void add_integer_tile_of(const uint8_t* tile, const RoundedValues* rounded, size_t tokens, size_t quads, size_t block,
                         size_t block_size, size_t columns, float* y, Prefetch& next) {
  using AddColumns = void (*)(const uint8_t*, const RoundedValues*, size_t, size_t, float*);
  constexpr AddColumns kAddColumns[kTokensOfIntegerTiles] = {add_columns<1, kSame>, add_columns<2, kSame>,
                                                             add_columns<3, kSame>, add_columns<4, kSame>};
  for (size_t t = 0; t < tokens; t += kTokensOfIntegerTiles) {
    const size_t count = tokens - t < kTokensOfIntegerTiles ? tokens - t : kTokensOfIntegerTiles;
    prefetch_step<ToSecondLevel>(next);
    for (size_t c = 0; c < columns; c += kColumnsAtOnce) {
      kAddColumns[count - 1](tile + c * kQuad, rounded + t, quads, block + c / block_size,
                             y + t * kIntegerTileColumns + c);
    }
  }
}

inline void add_integer_tile(const uint8_t* tile, const RoundedValues* rounded, size_t tokens, size_t channels,
                             size_t block, size_t block_size, size_t columns, float* y, Prefetch& next) {
  const auto add = block_size == 16   ? add_integer_tile_of<1>
                   : block_size == 32 ? add_integer_tile_of<2>
                                      : add_integer_tile_of<4>;
  add(tile, rounded, tokens, (channels + kQuad - 1) / kQuad, block, block_size, columns, y, next);
}

}  // namespace
}  // namespace nm_export
