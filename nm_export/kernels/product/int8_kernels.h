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

// A dot4 group: the activations of four inputs, rounded, are the four bytes of one number, as instructions that
// multiply bytes want them.
constexpr size_t kDot4 = 4;
constexpr size_t kDot4Groups = kBlockInputs / kDot4;

// A panel: so many blocks of outputs, whose activations are rounded together. (They are values times scales, and so
// others in every block of a weight.)
constexpr size_t kPanelBlocks = 16;

// The activations of one token in one block of inputs, for the up to kPanelBlocks blocks of a panel. What it has for
// more blocks is arbitrary.
struct Int8Activations {
  // For each dot4 group the bytes that multiply its weights. Longer than it need be, so that vectors can be loaded.
  alignas(64) uint32_t groups[kDot4Groups][2 * kPanelBlocks];
  alignas(64) int32_t zero_sum[2 * kPanelBlocks];  // what the zero points add to a sum
  alignas(64) float scale[2 * kPanelBlocks];       // what a sum is multiplied by
  uint32_t as_float;                               // bit b: block b cannot be rounded, has none of the above and adds 0
};

// The scales and zero points of a block of inputs and of a panel.
struct PanelScales {
  alignas(64) float scale[kBlockInputs][kPanelBlocks];
  alignas(64) int32_t zero_point[kBlockInputs][kPanelBlocks];  // of unsigned integers
  bool is_symmetric;  // then all zero points are `shift`, and those above are arbitrary
  int32_t shift;
};

// So many tokens are summed up together.
constexpr size_t kPackedInt8Tokens = 4;

// Where tokens share tiles of integers: those of a block of inputs and so many outputs, a dot4 group side by side.
struct PackedInt8Kernels {
  // Outputs of a tile, a multiple of every block of a quantized weight. It holds kBlockInputs bytes for each.
  size_t tile_outputs;

  // Packs a block of a weight to a tile. What the tile has more becomes arbitrary.
  void (*pack[kQuantizedTypes])(const Weight& weight, const WeightBlock& block, uint8_t* tile, PrefetchSchedule& next);

  // Of a block of a weight of at most kPanelBlocks blocks of outputs. Where there are none, scales become 0.
  void (*pack_scales[kQuantizedTypes])(const Weight& weight, const WeightBlock& block, PanelScales& scales);

  // Rounds the values of one token in the block of inputs from `first_input` on, of which it keeps `kept`. Inputs that
  // are not kept become 0.
  void (*quantize)(const PanelScales& scales, const WeightRows& kept, size_t first_input, Int8Activations& activations);

  // y[t, c] += scale * (sum over the first `inputs` inputs of activation * weight - zero_sum) for c < outputs, with
  // activations[t], which are for blocks of `block_size` outputs; the first output is of block `block`. y has
  // tile_outputs numbers a token, of which those beyond `outputs` become arbitrary.
  void (*add)(const uint8_t* tile, const Int8Activations* activations, size_t tokens, size_t inputs, size_t block,
              size_t block_size, size_t outputs, float* y, PrefetchSchedule& next);
};

// Indexed, as its parts are, by quantized_index.
struct Int8Kernels {
  // What add_rows of ProductKernels does, with the rows of one block of inputs of one token: add.count <= kBlockInputs.
  void (*add_rows[kQuantizedTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                    const WeightRows& next, size_t outputs, float* y);

  // The same as float32, for outputs of one block: where activations cannot be rounded.
  void (*add_as_float[kQuantizedTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                        size_t outputs, float* y);

  // Null where tiles of float32 are faster.
  const PackedInt8Kernels* packed;
};

}  // namespace nm_export
