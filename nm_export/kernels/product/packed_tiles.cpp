#include "product/packed_tiles.h"

#include <algorithm>

#include "product/tuning.h"

namespace nm_export {
namespace {

enum WorkerBuffer : size_t { kTile, kValues, kMasks, kSums };

}  // namespace

TaskLimits packed_limits() { return {kTuning.packed_outputs, kTuning.packed_outputs, true, kTuning.packed_tokens}; }

void run_packed(const ProductCall& call, const Task& task, AddTile add, WorkerBuffers& buffers) {
  const SparseProduct& product = call.product;
  const auto pack = call.kernels.pack_tile[static_cast<size_t>(product.weight.type)];
  const size_t tokens = task.tokens;
  const size_t tile_outputs = call.kernels.tile_outputs;
  const size_t tiles = ceil_div(task.outputs, tile_outputs);
  float* const tile = buffers.reserve<float>(kTile, kBlockInputs * tile_outputs);
  float* const x = buffers.reserve<float>(kValues, tokens * kBlockInputs);
  uint64_t* const masks = buffers.reserve<uint64_t>(kMasks, tokens);
  float* const sums = buffers.reserve<float>(kSums, tiles * tokens * tile_outputs);
  std::fill_n(sums, tiles * tokens * tile_outputs, 0.0f);

  for (size_t block = task.first_block; block < task.end_block; ++block) {
    const size_t k = block * kBlockInputs;
    const size_t inputs = call.inputs_of(block);
    const float* const values = product.values + task.first_token * product.inputs + k;
    for (size_t t = 0; t < tokens; ++t) {
      masks[t] = call.kernels.pack_inputs(values + t * product.inputs, inputs, x + t * kBlockInputs);
    }
    // Meanwhile the next block comes to the second-level cache.
    const size_t steps = tiles * (tokens + ceil_div(inputs, kPackedRowsPerStep));
    PrefetchSchedule next = call.prefetch_block(block + 1, task, steps);
    for (size_t start = 0; start < task.outputs; start += tile_outputs) {
      const size_t count = std::min(tile_outputs, task.outputs - start);
      pack(product.weight, WeightBlock{k, inputs, task.first_output + start, count}, tile, next);
      add(tile, TokenBlock{x, masks, tokens, inputs}, count, sums + start * tokens, next);
    }
  }
  call.store_sums(task, sums, tile_outputs);
}

}  // namespace nm_export
