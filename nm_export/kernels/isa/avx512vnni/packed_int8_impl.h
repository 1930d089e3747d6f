// AVX-512 VNNI: tiles of integers that many tokens multiply.
//
// A tile holds a block of 64 inputs and 256 outputs, 16 KiB: half of a first-level cache. The four inputs of a dot4
// group lie side by side, whoever keeps them, and outputs are in order:
//
//               output 0       output 1       output 2             output 255
//             +-------------+-------------+-------------+-- ... --+-------------+
//   group 0   | k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3 |         | k0 k1 k2 k3 |   1 KiB
//   group 1   | k4 k5 k6 k7 | k4 k5 k6 k7 |                                     |
//     ...
//   group 15  | k60 ... k63 |                                                   |
//             +-------------+-------------+-------------+-- ... --+-------------+
//
// Four tokens at once multiply each vector of it (16 outputs) by a dot4 group of their activations, in which pruned
// inputs are zeros. A token's own kept rows would be half as many products, but two shuffles for each.
#pragma once

#include "isa/avx512/int8_quantizer.h"
#include "isa/avx512vnni/vector.h"
#include "product/prefetch_impl.h"

namespace nm_export {
namespace {

constexpr size_t kInt8TileOutputs = 256;

// Vectors of outputs, and tokens, that are summed up together: each vector of weights that is loaded serves four
// tokens.
constexpr size_t kVectorsAtOnce = 4;
constexpr size_t kOutputsAtOnce = 16 * kVectorsAtOnce;

// Stores part q of the four vectors in turn `stride` * q bytes behind the target.
inline void store_parts(uint8_t* target, size_t stride, const __m512i* v) {
  __m512 numbers[4];
  for (size_t i = 0; i < 4; ++i) numbers[i] = _mm512_castsi512_ps(v[i]);
  __m512 gathered[4];
  Avx512Vector::gather_parts(numbers, gathered);
  for (size_t q = 0; q < 4; ++q) _mm512_store_si512(target + stride * q, _mm512_castps_si512(gathered[q]));
}

// Packs up to 64 bytes of each of four rows: 64 or 128 outputs.
template <size_t kBits, bool kSigned>
void pack_step(const uint8_t* const* rows, size_t offset, size_t bytes, uint8_t* target) {
  using V = Avx512VnniVector;
  __m512i v[4];
  if (kBits == 8) {
    load_interleaved<V, kSigned>(rows, offset, bytes, 0x80808080u, v);
    store_parts(target, 64, v);
    return;
  }
  __m512i pairs[4];
  load_interleaved<V, false>(rows, offset, bytes, 0, pairs);
  const __m512i flip = V::broadcast_int(kSigned ? 0x08080808 : 0);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t i = 0; i < 2; ++i) {
      const __m512i even = V::nibbles(pairs[h * 2 + i], flip);
      const __m512i odd = V::high_nibbles(pairs[h * 2 + i], flip);
      v[i * 2] = _mm512_unpacklo_epi32(even, odd);
      v[i * 2 + 1] = _mm512_unpackhi_epi32(even, odd);
    }
    store_parts(target + h * 64, 128, v);
  }
}

template <size_t kBits, bool kSigned>
void pack_int8_tile(const Weight& weight, const WeightBlock& block, uint8_t* tile, PrefetchSchedule& next) {
  constexpr size_t kStepBytes = 64;
  constexpr size_t kGroupBytes = kInt8TileOutputs * kDot4;
  const auto* weights = static_cast<const uint8_t*>(weight.data);
  const size_t bytes = block.outputs * kBits / 8;
  for (size_t k = 0; k < block.inputs; k += kDot4, tile += kGroupBytes) {
    prefetch_step<Avx512VnniVector>(next);
    const uint8_t* rows[kDot4];
    for (size_t i = 0; i < kDot4; ++i) {
      const size_t row = block.first_input + (k + i < block.inputs ? k + i : k);
      rows[i] = weights + (row * weight.outputs + block.first_output) * kBits / 8;
    }
    for (size_t offset = 0; offset < bytes; offset += kStepBytes) {
      const size_t count = bytes - offset < kStepBytes ? bytes - offset : kStepBytes;
      pack_step<kBits, kSigned>(rows, offset, count, tile + offset * 8 / kBits * kDot4);
    }
  }
}

template <size_t kBits, bool kSigned>
void pack_panel_scales(const Weight& weight, const WeightBlock& block, PanelScales& scales) {
  const size_t first = block.first_input * weight.blocks + block.first_output / weight.block_size;
  const size_t count = (block.outputs + weight.block_size - 1) / weight.block_size;
  for (size_t i = 0; i < block.inputs; ++i) {
    _mm512_store_ps(scales.scale[i], load_scales(weight.scales + first + i * weight.blocks, count));
  }
  scales.is_symmetric = weight.zero_points == nullptr;
  scales.shift = unsigned_shift<kBits, kSigned>();
  if (scales.is_symmetric) return;
  for (size_t i = 0; i < block.inputs; ++i) {
    load_zero_points<kBits, kSigned>(weight.zero_points, first + i * weight.blocks, count, scales.zero_point[i]);
  }
}

// What a Quantizer does, for rows whose scales are packed.
inline void quantize_packed(const PanelScales& scales, const WeightRows& kept, size_t first_input,
                            Int8Activations& activations) {
  using V = Avx512VnniVector;
  const auto product = [&](size_t i) {
    const float* scale = scales.scale[kept.row[i] - first_input];
    return V::mul(V::broadcast(kept.value[i]), _mm512_load_ps(scale));
  };

  __m512i largest = V::broadcast_int(0);
  for (size_t i = 0; i < kept.count; ++i) largest = larger(largest, product(i));
  const __m512 reciprocal = find_scales(largest, activations);
  for (auto& group : activations.groups) _mm512_store_si512(group, V::broadcast_int(0));
  __m512i zero_sum = V::broadcast_int(0);
  for (size_t i = 0; i < kept.count; ++i) {
    const __m512i integers = _mm512_cvtps_epi32(V::mul(product(i), reciprocal));
    const size_t place = kept.row[i] - first_input;
    uint32_t* const group = activations.groups[place / kDot4];
    const __m512i before = _mm512_load_si512(group);
    _mm512_store_si512(group, insert_byte(before, integers, static_cast<unsigned>(place % kDot4)));
    const __m512i zero_points = _mm512_load_si512(scales.zero_point[place]);
    zero_sum = V::add_int(zero_sum, scales.is_symmetric ? integers : V::mul_int(integers, zero_points));
  }
  if (scales.is_symmetric) zero_sum = V::mul_int(zero_sum, V::broadcast_int(scales.shift));
  _mm512_store_si512(activations.zero_sum, zero_sum);
}

// kTokens tokens times kOutputsAtOnce outputs, of which kSame vectors each are of one block.
template <size_t kTokens, size_t kSame>
void add_outputs(const uint8_t* weights, const Int8Activations* activations, size_t groups, size_t block, float* y) {
  using V = Avx512VnniVector;
  constexpr size_t kBlocks = kVectorsAtOnce / kSame;
  __m512i sums[kTokens][kVectorsAtOnce];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = V::broadcast_int(0);
  }
  size_t g = 0;
  do {
    __m512i weight[kVectorsAtOnce];
    for (size_t v = 0; v < kVectorsAtOnce; ++v) weight[v] = _mm512_load_si512(weights + v * 64);
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t b = 0; b < kBlocks; ++b) {
        const __m512i values = V::broadcast_int(static_cast<int>(activations[t].groups[g][block + b]));
        for (size_t v = b * kSame; v < (b + 1) * kSame; ++v) sums[t][v] = V::dot4<8>(sums[t][v], weight[v], values);
      }
    }
    weights += kInt8TileOutputs * kDot4;
  } while (++g < groups);
  for (size_t t = 0; t < kTokens; ++t, y += kInt8TileOutputs) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) {
      const size_t b = block + v / kSame;
      const __m512i sum = V::sub_int(sums[t][v], V::broadcast_int(activations[t].zero_sum[b]));
      V::add_to(y + v * 16, V::mul(V::broadcast(activations[t].scale[b]), V::to_float(sum)));
    }
  }
}

template <size_t kSame>
void add_int8_tile_of(const uint8_t* tile, const Int8Activations* activations, size_t tokens, size_t groups,
                      size_t block, size_t block_size, size_t outputs, float* y, PrefetchSchedule& next) {
  using AddOutputs = void (*)(const uint8_t*, const Int8Activations*, size_t, size_t, float*);
  constexpr AddOutputs kAddOutputs[kPackedInt8Tokens] = {add_outputs<1, kSame>, add_outputs<2, kSame>,
                                                         add_outputs<3, kSame>, add_outputs<4, kSame>};
  for (size_t t = 0; t < tokens; t += kPackedInt8Tokens) {
    const size_t count = tokens - t < kPackedInt8Tokens ? tokens - t : kPackedInt8Tokens;
    prefetch_step<Avx512VnniVector>(next);
    for (size_t c = 0; c < outputs; c += kOutputsAtOnce) {
      kAddOutputs[count - 1](tile + c * kDot4, activations + t, groups, block + c / block_size,
                             y + t * kInt8TileOutputs + c);
    }
  }
}

inline void add_int8_tile(const uint8_t* tile, const Int8Activations* activations, size_t tokens, size_t inputs,
                          size_t block, size_t block_size, size_t outputs, float* y, PrefetchSchedule& next) {
  const auto add = block_size == 16   ? add_int8_tile_of<1>
                   : block_size == 32 ? add_int8_tile_of<2>
                                      : add_int8_tile_of<4>;
  add(tile, activations, tokens, (inputs + kDot4 - 1) / kDot4, block, block_size, outputs, y, next);
}

constexpr PackedInt8Kernels kPackedInt8 = {
    kInt8TileOutputs,
    {pack_int8_tile<8, true>, pack_int8_tile<8, false>, pack_int8_tile<4, true>, pack_int8_tile<4, false>},
    {pack_panel_scales<8, true>, pack_panel_scales<8, false>, pack_panel_scales<4, true>, pack_panel_scales<4, false>},
    quantize_packed,
    add_int8_tile};

}  // namespace
}  // namespace nm_export
