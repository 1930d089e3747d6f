// AVX-512 VNNI: tiles of integers that many tokens multiply.
//
// A tile holds a block of 64 inputs and 256 outputs, 16 KiB: half of a first-level cache. The four inputs of a dot4 lie
// side by side, whoever keeps them, and outputs are in order:
//
//               output 0       output 1       output 2             output 255
//             +-------------+-------------+-------------+-- ... --+-------------+
//   dot4 0    | k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3 |         | k0 k1 k2 k3 |   1 KiB
//   dot4 1    | k4 k5 k6 k7 | k4 k5 k6 k7 |                                     |
//     ...
//   dot4 15   | k60 ... k63 |                                                   |
//             +-------------+-------------+-------------+-- ... --+-------------+
//
// Four tokens at once multiply each vector of it (16 outputs) by a dot4 of their activations, in which pruned inputs
// are zeros. A token's own kept rows would be half as many products, but two shuffles for each.
#pragma once

#include "isa/avx512vnni/vector.h"
#include "product/int8_kernels_impl.h"
#include "product/prefetch_impl.h"

namespace nm_export {
namespace {

constexpr size_t kInt8TileOutputs = 256;

// Vectors of outputs that are summed up together for up to kPackedInt8Tokens tokens, as integers and as float32: half
// of the registers.
constexpr size_t kVectorsAtOnce = 2;
constexpr size_t kOutputsAtOnce = 16 * kVectorsAtOnce;

// Stores quarter q of the four vectors in turn `stride` * q bytes behind the target.
inline void store_quarters(uint8_t* target, size_t stride, const __m512i* v) {
  __m512i gathered[4];
  gather_quarters(v, gathered);
  for (size_t q = 0; q < 4; ++q) _mm512_store_si512(target + stride * q, gathered[q]);
}

// Packs up to 64 bytes of each of four rows: 64 or 128 outputs.
template <size_t kBits>
void pack_step(const uint8_t* const* rows, size_t offset, size_t bytes, uint8_t* target) {
  const Interleaved four = interleaved(rows, offset, bytes);
  if (kBits == 8) {
    store_quarters(target, 64, four.at);
    return;
  }
  const __m512i mask = _mm512_set1_epi8(15);
  for (size_t h = 0; h < 2; ++h) {
    __m512i v[4];
    for (size_t i = 0; i < 2; ++i) {
      const __m512i pairs = four.at[h * 2 + i];
      const __m512i even = _mm512_and_si512(pairs, mask);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask);
      zip_quarters(even, odd, v + i * 2);
    }
    store_quarters(target + h * 64, 128, v);
  }
}

template <size_t kBits>
void pack_int8_tile(const Weight& weight, const WeightBlock& block, uint8_t* tile, PrefetchSchedule& next) {
  constexpr size_t kStepBytes = 64;
  constexpr size_t kDot4Bytes = kInt8TileOutputs * kDot4;
  const auto* weights = static_cast<const uint8_t*>(weight.data);
  const size_t bytes = block.outputs * kBits / 8;
  for (size_t k = 0; k < block.inputs; k += kDot4, tile += kDot4Bytes) {
    prefetch_step<NearPrefetch<Avx512VnniVector>>(next);
    const uint8_t* rows[kDot4];
    for (size_t i = 0; i < kDot4; ++i) {
      const size_t row = block.first_input + (k + i < block.inputs ? k + i : k);
      rows[i] = weights + (row * weight.outputs + block.first_output) * kBits / 8;
    }
    for (size_t offset = 0; offset < bytes; offset += kStepBytes) {
      const size_t count = bytes - offset < kStepBytes ? bytes - offset : kStepBytes;
      pack_step<kBits>(rows, offset, count, tile + offset * 8 / kBits * kDot4);
    }
  }
}

// The groups of inputs of a tile, and their scales and zero points for its outputs.
template <class Scale>
struct TileGroups : GroupScales<Scale> {
  size_t count;
  size_t end_dot4[kMostGroups];
};

template <class Scale>
TileGroups<Scale> groups_of(const Weight& weight, const WeightBlock& block) {
  const size_t size = group_size(weight);
  TileGroups<Scale> groups{};
  groups.zero_point = weight.zero_point;
  for (size_t k = 0; k < block.inputs; k += size) {
    const size_t end = k + size < block.inputs ? k + size : block.inputs;
    const size_t at = (block.first_input + k) / weight.block_size * weight.outputs + block.first_output;
    groups.end_dot4[groups.count] = (end + kDot4 - 1) / kDot4;
    groups.scales[groups.count] = static_cast<const Scale*>(weight.scales) + at;
    if (weight.zero_points != nullptr) {
      groups.zero_points[groups.count] = static_cast<const Scale*>(weight.zero_points) + at;
    }
    ++groups.count;
  }
  return groups;
}

// Adds up to kOutputsAtOnce outputs from `output` on.
template <size_t kTokens, class Scale>
void add_outputs(const uint8_t* weights, const TileGroups<Scale>& groups, const Int8Activations* activations,
                 size_t output, size_t outputs, float* y) {
  using V = Avx512VnniVector;
  __m512 total[kTokens][kVectorsAtOnce];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) total[t][v] = V::load(y + t * kInt8TileOutputs + v * 16);
  }
  size_t q = 0;
  for (size_t g = 0; g < groups.count; ++g) {
    __m512i sums[kTokens][kVectorsAtOnce];
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = V::broadcast_int(0);
    }
    for (; q < groups.end_dot4[g]; ++q, weights += kInt8TileOutputs * kDot4) {
      __m512i integers[kVectorsAtOnce];
      for (size_t v = 0; v < kVectorsAtOnce; ++v) integers[v] = _mm512_load_si512(weights + v * 64);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m512i values = V::broadcast_int(static_cast<int>(activations[t].dot4[q]));
        for (size_t v = 0; v < kVectorsAtOnce; ++v) sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], integers[v], values);
      }
    }
    for (size_t v = 0; v < kVectorsAtOnce; ++v) {
      const size_t first = v * 16;
      const size_t count = first >= outputs ? 0 : outputs - first < 16 ? outputs - first : 16;
      const __m512 scale = V::load_few(groups.scales[g] + output + first, count);
      __m512 zero_point = V::broadcast(groups.zero_point);
      if (groups.zero_points[g] != nullptr) zero_point = V::load_few(groups.zero_points[g] + output + first, count);
      for (size_t t = 0; t < kTokens; ++t) {
        const __m512 minus_sum = V::broadcast(-activations[t].sum[g]);
        const __m512 number = V::fma(zero_point, minus_sum, V::to_float(sums[t][v]));
        total[t][v] = V::fma(V::mul(V::broadcast(activations[t].step[g]), scale), number, total[t][v]);
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectorsAtOnce; ++v) V::store(y + t * kInt8TileOutputs + v * 16, total[t][v]);
  }
}

template <class Scale>
void add_int8_tile_by(const Weight& weight, const WeightBlock& block, const uint8_t* tile,
                      const Int8Activations* activations, size_t tokens, float* y, PrefetchSchedule& next) {
  using AddOutputs = void (*)(const uint8_t*, const TileGroups<Scale>&, const Int8Activations*, size_t, size_t, float*);
  constexpr AddOutputs kAddOutputs[kPackedInt8Tokens] = {add_outputs<1, Scale>, add_outputs<2, Scale>,
                                                         add_outputs<3, Scale>, add_outputs<4, Scale>};
  const TileGroups<Scale> groups = groups_of<Scale>(weight, block);
  for (size_t t = 0; t < tokens; t += kPackedInt8Tokens) {
    const size_t count = tokens - t < kPackedInt8Tokens ? tokens - t : kPackedInt8Tokens;
    prefetch_step<NearPrefetch<Avx512VnniVector>>(next);
    for (size_t c = 0; c < block.outputs; c += kOutputsAtOnce) {
      kAddOutputs[count - 1](tile + c * kDot4, groups, activations + t, c, block.outputs - c,
                             y + t * kInt8TileOutputs + c);
    }
  }
}

inline void add_int8_tile(const Weight& weight, const WeightBlock& block, const uint8_t* tile,
                          const Int8Activations* activations, size_t tokens, float* y, PrefetchSchedule& next) {
  const auto add = weight.half_scales ? add_int8_tile_by<Float16> : add_int8_tile_by<float>;
  add(weight, block, tile, activations, tokens, y, next);
}

constexpr PackedInt8Kernels kPackedInt8 = {
    kInt8TileOutputs, {pack_int8_tile<8>, pack_int8_tile<4>}, quantize, add_int8_tile};

}  // namespace
}  // namespace nm_export
