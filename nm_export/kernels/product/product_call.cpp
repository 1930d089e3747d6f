#include <algorithm>

#include "product/algorithm.h"

namespace nm_export {

ProductCall::ProductCall(const InstructionSet& isa, const SparseProduct& described, size_t splits,
                         CallBuffers& call_buffers)
    : kernels(*isa.products),
      int8(*isa.int8),
      product(described),
      blocks(ceil_div(described.inputs, kBlockInputs)),
      buffers(call_buffers),
      split_sums_(call_buffers.split_sums.reserve((splits - 1) * described.tokens * described.weight.outputs)) {}

float* ProductCall::sums_of(const Task& task) const {
  const size_t numbers = product.tokens * product.weight.outputs;
  float* const all = task.split == 0 ? product.y : split_sums_ + (task.split - 1) * numbers;
  return all + task.first_token * product.weight.outputs + task.first_output;
}

void ProductCall::start_sums(const Task& task) const {
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product.weight.outputs) std::fill_n(y, task.outputs, 0.0f);
}

void ProductCall::end_sums(const Task& task) const {
  if (task.split != 0) return;
  const float* bias = product.bias + task.first_output;
  const float* offset = product.offset + task.first_output;
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product.weight.outputs) {
    const float shift = product.token_shift[task.first_token + t];
    for (size_t c = 0; c < task.outputs; ++c) y[c] += shift * offset[c] + bias[c];
  }
}

void ProductCall::store_sums(const Task& task, const float* sums, size_t tile_outputs) const {
  const float* bias = product.bias + task.first_output;
  const float* offset = product.offset + task.first_output;
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product.weight.outputs) {
    const float shift = product.token_shift[task.first_token + t];
    for (size_t start = 0; start < task.outputs; start += tile_outputs) {
      const float* sum = sums + start * task.tokens + t * tile_outputs - start;
      const size_t end = std::min(start + tile_outputs, task.outputs);
      for (size_t c = start; c < end; ++c) {
        y[c] = task.split == 0 ? sum[c] + (shift * offset[c] + bias[c]) : sum[c];
      }
    }
  }
}

PrefetchSchedule ProductCall::prefetch_block(size_t block, const Task& task, size_t steps) const {
  const size_t bits = stored_bits(product.weight.type);
  const size_t first = block * kBlockInputs * product.weight.outputs + task.first_output;
  PrefetchSchedule next{};
  next.at = static_cast<const char*>(product.weight.data) + first * bits / 8;
  next.stride = product.weight.outputs * bits / 8;
  next.row_lines = ceil_div(task.outputs * bits / 8, kCacheLine);
  next.rows = inputs_of(block);
  next.lines_per_step = ceil_div(next.row_lines * next.rows, steps);
  return next;
}

}  // namespace nm_export
