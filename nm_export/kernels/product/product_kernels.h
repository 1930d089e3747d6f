// The inner loops of a product with a pruned input, implemented once for every instruction set.
//
// For the algorithms of product/. Nothing is checked here and nothing is allocated. As selection_kernels.h says, the
// files of an instruction set use no inline function of the C++ library.
#pragma once

#include "product/prefetch.h"
#include "product/weight.h"

namespace nm_export {

struct ProductKernels {
  // The inputs of v that are not zero (a NaN is not), in ascending order: their numbers, counted from `first`, and what
  // they hold. Both targets have room for `inputs` <= kBlockInputs numbers. Returns them as a mask too.
  uint64_t (*gather_nonzero)(const float* v, size_t inputs, size_t first, uint32_t* row, float* value);

  // y[c] += sum over i of add.value[i] * W[add.row[i], c], for c < outputs, while the rows `next` are prefetched;
  // next.count <= kBlockInputs, next.value is not used. W[., 0] is the weight's output `first_output`. Rows of a
  // quantized weight are of one block of inputs. Indexed by WeightType.
  void (*add_rows[kWeightTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                 const WeightRows& next, size_t outputs, float* y);

  // For so many tokens add_union_rows loads a row once.
  size_t union_tokens;

  // y[t, c] += sum over the rows r of `add`, of one block of inputs, of x[t, r % kBlockInputs] * W[r, c], for all
  // `tokens`, whose masks are not used; y has the outputs of the weight. The rest is that of add_rows, and add.value is
  // not used either. Indexed by WeightType.
  void (*add_union_rows[kFloatTypes])(const Weight& weight, size_t first_output, const WeightRows& add,
                                      const TokenBlock& tokens, const WeightRows& next, size_t outputs, float* y);

  // A tile holds the weights of a block of inputs to so many outputs, as float32, one row after the other.
  size_t tile_outputs;

  // Packs a block of a weight to a tile. What the tile has more is left as it is. Indexed by WeightType.
  void (*pack_tile[kWeightTypes])(const Weight& weight, const WeightBlock& block, float* tile, PrefetchSchedule& next);

  // Packs `inputs` <= kBlockInputs values of a token for TokenBlock, and returns their mask.
  uint64_t (*pack_inputs)(const float* v, size_t inputs, float* x);

  // y[t, c] += sum over the bits k of masks[t] of x[t, k] * tile[k, c], for c < outputs <= tile_outputs; y has
  // tile_outputs numbers a token, of which those beyond `outputs` become arbitrary.
  void (*add_sparse_tile)(const float* tile, const TokenBlock& tokens, size_t outputs, float* y,
                          PrefetchSchedule& next);

  // The same, and to the bit where weights are finite, by multiplying zeros too.
  void (*add_dense_tile)(const float* tile, const TokenBlock& tokens, size_t outputs, float* y, PrefetchSchedule& next);
};

}  // namespace nm_export
