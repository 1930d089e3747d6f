// Few tokens: each adds the weight rows of its own kept inputs, where they lie.
#include <algorithm>
#include <bitset>

#include "product/algorithm.h"
#include "product/tuning.h"

namespace nm_export {
namespace {

// For each block of inputs the rows of every token, and then, if there are several, those of any of them.
enum CallBuffer : size_t { kRows, kValues, kEnds };

size_t lists_per_block(const SparseProduct& product) { return product.tokens == 1 ? 1 : product.tokens + 1; }

WeightRows rows_of(const ProductCall& call, size_t block, size_t list) {
  const Scratch& lists = call.buffers.algorithm;
  const size_t* ends = lists.data<size_t>(kEnds) + block * lists_per_block(call.product) + list;
  return {lists.data<uint32_t>(kRows) + ends[0], lists.data<float>(kValues) + ends[0], ends[1] - ends[0]};
}

WeightRows rows_of_any_token(const ProductCall& call, size_t block) {
  if (block >= call.blocks) return {nullptr, nullptr, 0};
  return rows_of(call, block, lists_per_block(call.product) - 1);
}

using AddRows = void (*)(const Weight&, size_t first_output, const WeightRows& add, const WeightRows& next,
                         size_t outputs, float* y);

void add_blocks(const ProductCall& call, const Task& task, AddRows add) {
  const Weight& weight = call.product.weight;
  float* const y = call.sums_of(task);
  for (size_t block = task.first_block; block < task.end_block; ++block) {
    // Behind the last one too: there a worker's next task begins.
    const WeightRows next = rows_of_any_token(call, block + 1);
    for (size_t t = 0; t < task.tokens; ++t) {
      const size_t start = next.count * t / task.tokens;
      const WeightRows share{next.row + start, nullptr, next.count * (t + 1) / task.tokens - start};
      add(weight, task.first_output, rows_of(call, block, t), share, task.outputs, y + t * weight.outputs);
    }
  }
}

// One token and a quantized weight: by groups of inputs that share scales, so that the rows of one and of the next,
// which are prefetched, fit the first-level cache.
void add_groups(const ProductCall& call, const Task& task, AddRows add) {
  const Weight& weight = call.product.weight;
  const size_t size = group_size(weight);
  const WeightRows first = rows_of(call, task.first_block, 0);
  const WeightRows last = rows_of(call, task.end_block - 1, 0);
  const uint32_t* const end = last.row + last.count;
  const auto group_from = [&](const uint32_t* row) {
    WeightRows group{row, first.value + (row - first.row), 0};
    while (row + group.count < end && row[group.count] / size == *row / size) ++group.count;
    return group;
  };
  float* const y = call.sums_of(task);
  for (WeightRows group = group_from(first.row); group.count > 0;) {
    const WeightRows next = group_from(group.row + group.count);
    add(weight, task.first_output, group, next, task.outputs, y);
    group = next;
  }
}

class GatherRows final : public Algorithm {
 public:
  const char* name() const override { return "gather rows"; }

  TaskLimits limits(const SparseProduct&) const override {
    return {kTuning.gather_rows_outputs, kTuning.gather_rows_outputs, true, 0};
  }

  void prepare(const ProductCall& call) const override {
    const SparseProduct& product = call.product;
    Scratch& lists = call.buffers.algorithm;
    const size_t per_block = lists_per_block(product);
    uint32_t* const rows = lists.reserve<uint32_t>(kRows, per_block * product.inputs);
    float* const values = lists.reserve<float>(kValues, per_block * product.inputs);
    size_t* end = lists.reserve<size_t>(kEnds, per_block * call.blocks + 1);
    size_t count = 0;
    *end++ = 0;
    for (size_t first = 0; first < product.inputs; first += kBlockInputs) {
      const size_t inputs = std::min(kBlockInputs, product.inputs - first);
      uint64_t any = 0;
      for (size_t t = 0; t < product.tokens; ++t) {
        const float* v = product.values + t * product.inputs + first;
        const uint64_t mask = call.kernels.gather_nonzero(v, inputs, first, rows + count, values + count);
        any |= mask;
        count += std::bitset<kBlockInputs>(mask).count();
        *end++ = count;
      }
      if (product.tokens == 1) continue;
      for (size_t k = 0; k < inputs; ++k) {
        if (any >> k & 1u) rows[count++] = static_cast<uint32_t>(first + k);
      }
      *end++ = count;
    }
  }

  void run(const ProductCall& call, const Task& task, WorkerBuffers&) const override {
    const Weight& weight = call.product.weight;
    const bool int8 = call.product.int8_activations && is_quantized(weight.type);
    const auto add = int8 ? call.int8.add_rows[quantized_index(weight.type)]
                          : call.kernels.add_rows[static_cast<size_t>(weight.type)];
    call.start_sums(task);
    if (call.product.tokens == 1 && is_quantized(weight.type)) {
      add_groups(call, task, add);
    } else {
      add_blocks(call, task, add);
    }
    call.end_sums(task);
  }
};

}  // namespace

const Algorithm& gather_rows() {
  static constexpr GatherRows kAlgorithm;
  return kAlgorithm;
}

}  // namespace nm_export
