// Some more tokens: each weight row that any of them keeps is multiplied for all of them, where it lies.
#include <utility>

#include "product/algorithm.h"
#include "product/tuning.h"

namespace nm_export {
namespace {

enum WorkerBuffer : size_t { kValues };

// All tokens' values in a block of inputs, packed, and the rows that any token needs.
struct UnionBlock {
  float* x;
  uint32_t rows[kBlockInputs];
  size_t count;

  WeightRows list() const { return {rows, nullptr, count}; }
};

// Behind the last block there are no inputs.
void load(const ProductCall& call, size_t block, UnionBlock& target) {
  const SparseProduct& product = call.product;
  const size_t first = block * kBlockInputs;
  const size_t inputs = call.inputs_of(block);
  uint64_t any = 0;
  for (size_t t = 0; inputs > 0 && t < product.tokens; ++t) {
    const float* v = product.values + t * product.inputs + first;
    any |= call.kernels.pack_inputs(v, inputs, target.x + t * kBlockInputs);
  }
  target.count = 0;
  for (size_t i = 0; i < inputs; ++i) {
    target.rows[target.count] = static_cast<uint32_t>(first + i);
    target.count += any >> i & 1u;
  }
}

class GatherUnion final : public Algorithm {
 public:
  const char* name() const override { return "gather union"; }

  TaskLimits limits(const SparseProduct& product) const override {
    const size_t outputs = kTuning.gather_union_bytes * 8 / stored_bits(product.weight.type);
    return {outputs, kTuning.packed_outputs, true, 0};
  }

  void run(const ProductCall& call, const Task& task, WorkerBuffers& buffers) const override {
    const SparseProduct& product = call.product;
    const auto add = call.kernels.add_union_rows[static_cast<size_t>(product.weight.type)];
    const size_t numbers = product.tokens * kBlockInputs;
    float* const x = buffers.reserve<float>(kValues, 2 * numbers);
    UnionBlock blocks[] = {{x, {}, 0}, {x + numbers, {}, 0}};
    UnionBlock* now = &blocks[0];
    UnionBlock* next = &blocks[1];
    call.start_sums(task);
    load(call, task.first_block, *now);
    for (size_t block = task.first_block; block < task.end_block; ++block) {
      load(call, block + 1, *next);
      const TokenBlock tokens{now->x, nullptr, product.tokens, call.inputs_of(block)};
      add(product.weight, task.first_output, now->list(), tokens, next->list(), task.outputs, call.sums_of(task));
      std::swap(now, next);
    }
    call.end_sums(task);
  }
};

}  // namespace

const Algorithm& gather_union() {
  static constexpr GatherUnion kAlgorithm;
  return kAlgorithm;
}

}  // namespace nm_export
