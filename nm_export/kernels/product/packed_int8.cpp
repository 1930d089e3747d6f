// Many tokens with int8 activations: tiles of integers, which the tokens share, are multiplied as bytes.
//
// A token keeps other inputs than its neighbour, so the tile has them all, and pruned ones are multiplied by 0: putting
// a token's own rows of bytes side by side would take longer than that.
#include <algorithm>
#include <bitset>

#include "product/algorithm.h"
#include "product/tuning.h"

namespace nm_export {
namespace {

enum WorkerBuffer : size_t { kTile, kRows, kValues, kCounts, kActivations, kSums };

// Adds the groups of inputs whose bits are set as float32.
void add_as_float(const ProductCall& call, const WeightBlock& part, const WeightRows& kept, uint32_t groups, float* y) {
  const Weight& weight = call.product.weight;
  const auto add = call.int8.add_as_float[quantized_index(weight.type)];
  for (size_t i = 0; i < kept.count; ++i) {
    if ((groups >> ((kept.row[i] - part.first_input) / group_size(weight)) & 1u) == 0) continue;
    add(weight, part.first_output, {kept.row + i, kept.value + i, 1}, part.outputs, y);
  }
}

class PackedInt8 final : public Algorithm {
 public:
  const char* name() const override { return "packed int8"; }

  // Narrow parts would round the values of a token several times.
  TaskLimits limits(const SparseProduct& product) const override {
    const bool by_tokens = product.tokens >= 2 * kTuning.fewest_packed_tokens;
    const size_t tokens = by_tokens ? kTuning.packed_int8_tokens : kTuning.packed_tokens;
    return {kTuning.packed_outputs, kTuning.packed_outputs, !by_tokens, tokens};
  }

  void run(const ProductCall& call, const Task& task, WorkerBuffers& buffers) const override {
    const SparseProduct& product = call.product;
    const Weight& weight = product.weight;
    const PackedInt8Kernels& kernels = *call.int8.packed;
    const auto pack = kernels.pack[quantized_index(weight.type)];
    const size_t tokens = task.tokens;
    const size_t tile_outputs = kernels.tile_outputs;
    const size_t tiles = ceil_div(task.outputs, tile_outputs);
    uint8_t* const tile = buffers.reserve<uint8_t>(kTile, kBlockInputs * tile_outputs);
    uint32_t* const rows = buffers.reserve<uint32_t>(kRows, tokens * kBlockInputs);
    float* const row_values = buffers.reserve<float>(kValues, tokens * kBlockInputs);
    size_t* const counts = buffers.reserve<size_t>(kCounts, tokens);
    Int8Activations* const activations = buffers.reserve<Int8Activations>(kActivations, tokens);
    float* const sums = buffers.reserve<float>(kSums, tiles * tokens * tile_outputs);  // [tile, token, output]
    std::fill_n(sums, tiles * tokens * tile_outputs, 0.0f);
    const auto kept = [&](size_t t) {
      return WeightRows{rows + t * kBlockInputs, row_values + t * kBlockInputs, counts[t]};
    };

    for (size_t block = task.first_block; block < task.end_block; ++block) {
      const size_t k = block * kBlockInputs;
      const size_t inputs = call.inputs_of(block);
      const float* const values = product.values + task.first_token * product.inputs + k;
      for (size_t t = 0; t < tokens; ++t) {
        const uint64_t mask = call.kernels.gather_nonzero(values + t * product.inputs, inputs, k,
                                                          rows + t * kBlockInputs, row_values + t * kBlockInputs);
        counts[t] = std::bitset<kBlockInputs>(mask).count();
        kernels.quantize(kept(t), k, group_size(weight), activations[t]);
      }
      const size_t steps = tiles * (ceil_div(tokens, kPackedInt8Tokens) + kMostDot4s);
      PrefetchSchedule next = call.prefetch_block(block + 1, task, steps);
      for (size_t c = 0; c < task.outputs; c += tile_outputs) {
        const WeightBlock part{k, inputs, task.first_output + c, std::min(tile_outputs, task.outputs - c)};
        float* const y = sums + c * tokens;
        pack(weight, part, tile, next);
        kernels.add(weight, part, tile, activations, tokens, y, next);
        for (size_t t = 0; t < tokens; ++t) {
          const uint32_t as_float = activations[t].as_float;
          if (as_float != 0) add_as_float(call, part, kept(t), as_float, y + t * tile_outputs);
        }
      }
    }
    call.store_sums(task, sums, tile_outputs);
  }
};

}  // namespace

const Algorithm& packed_int8() {
  static constexpr PackedInt8 kAlgorithm;
  return kAlgorithm;
}

}  // namespace nm_export
