// The inner loops of a product of quantized weights with activations that are rounded to int8: docs/semantics.md,
// accuracy level 4.
//
// For the algorithms of product/. Their integers are the same in every instruction set, so that results differ by the
// order of float32 additions only. Nothing is checked here and nothing is allocated. As selection_kernels.h says, the
// files of an instruction set use no inline function of the C++ library.
#pragma once

#include "product/prefetch.h"
#include "product/weight.h"

namespace nm_export {

// A dot4: the activations of four inputs, rounded, are the four bytes of one number, as instructions that multiply
// bytes want them.
constexpr size_t kDot4 = 4;
constexpr size_t kMostDot4s = kBlockInputs / kDot4;

// A group: inputs whose activations are rounded together. They share the scales of a weight; of more than kBlockInputs
// inputs that do, so many are a group.
constexpr size_t kMostGroups = kBlockInputs / kSmallestBlock;

static constexpr size_t group_size(const Weight& weight) {
  return weight.block_size < kBlockInputs ? weight.block_size : kBlockInputs;
}

// The activations of one token in one block of inputs, rounded group by group. Inputs that are not kept are 0.
struct Int8Activations {
  uint32_t dot4[kMostDot4s];
  float step[kMostGroups];  // what a sum of integers is multiplied by, besides the scale
  float sum[kMostGroups];   // of the rounded activations
  uint32_t as_float;        // bit g: group g cannot be rounded, and has only zeros here
};

// So many tokens are summed up together.
constexpr size_t kPackedInt8Tokens = 4;

// Where tokens share tiles of integers: those of a block of inputs and so many outputs, a dot4 side by side.
struct PackedInt8Kernels {
  // Outputs of a tile. It holds kBlockInputs bytes for each.
  size_t tile_outputs;

  // Packs a block of a weight to a tile. What the tile has more becomes arbitrary.
  void (*pack[kQuantizedTypes])(const Weight& weight, const WeightBlock& block, uint8_t* tile, PrefetchSchedule& next);

  // Rounds the values of one token in the block of inputs from `first_input` on, of which it keeps `kept`, in groups of
  // so many inputs.
  void (*quantize)(const WeightRows& kept, size_t first_input, size_t group, Int8Activations& activations);

  // y[t, c] += sum over the groups of step * scale[c] * (sum of activation * integer - zero point[c] * sum), for the
  // outputs of a block that was packed. y has tile_outputs numbers a token, of which those beyond become arbitrary.
  void (*add)(const Weight& weight, const WeightBlock& block, const uint8_t* tile, const Int8Activations* activations,
              size_t tokens, float* y, PrefetchSchedule& next);
};

// Indexed, as its parts are, by quantized_index.
struct Int8Kernels {
  // What add_rows of ProductKernels does, with the rows of one block of inputs of one token: add.count <= kBlockInputs.
  void (*add_rows[kQuantizedTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                    const WeightRows& next, size_t outputs, float* y);

  // The same as float32: where activations cannot be rounded.
  void (*add_as_float[kQuantizedTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                        size_t outputs, float* y);

  // Null where tiles of float32 are faster.
  const PackedInt8Kernels* packed;
};

}  // namespace nm_export
