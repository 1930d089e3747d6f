// The product by tiles of float32, which packed sparse and packed dense share.
#pragma once

#include "product/algorithm.h"

namespace nm_export {

TaskLimits packed_limits();

// Adds a tile to the sums of all tokens: add_sparse_tile or add_dense_tile of ProductKernels.
using AddTile = void (*)(const float* tile, const TokenBlock& tokens, size_t outputs, float* y, PrefetchSchedule& next);

// The weights of a block of inputs are packed to tiles, which the tokens share.
void run_packed(const ProductCall& call, const Task& task, AddTile add, WorkerBuffers& buffers);

}  // namespace nm_export
