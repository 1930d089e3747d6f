#include "product/task_grid.h"

#include <algorithm>

#include "product/tuning.h"

namespace nm_export {

size_t most_tokens_gather_rows(const SparseProduct& product) {
  const bool int8 = is_quantized(product.weight.type) && product.int8_activations;
  return int8 ? kTuning.most_tokens_gather_int8_rows : kTuning.most_tokens_gather_rows;
}

TaskGrid::TaskGrid(const SparseProduct& product, const TaskLimits& limits, size_t workers, Partition partition)
    : tokens_(product.tokens),
      outputs_(product.weight.outputs),
      bits_(stored_bits(product.weight.type)),
      blocks_(ceil_div(product.inputs, kBlockInputs)) {
  if (partition == Partition::kSplitK && tokens_ <= kTuning.most_tokens_split_k) {
    // Alike in all algorithms that are candidates.
    const bool few = tokens_ <= most_tokens_gather_rows(product);
    divide_inputs(few ? kTuning.gather_rows_outputs : limits.split_k_outputs);
  }
  divide_outputs(limits.divides_outputs ? ceil_div(workers, splits_) : 1, limits.outputs);
  divide_tokens(workers, limits.tokens);
}

void TaskGrid::divide_inputs(size_t widest) {
  const size_t pieces = ceil_div(outputs_, widest);
  const size_t most = std::min(kTuning.split_k_tasks / pieces, blocks_ / kTuning.split_k_blocks);
  while (2 * splits_ <= most) splits_ *= 2;  // three would keep two workers busy badly
}

// Into as many equal parts as keep all workers busy, of at most `widest` outputs.
void TaskGrid::divide_outputs(size_t workers, size_t widest) {
  const size_t unit = std::max(kTuning.output_unit, kTuning.output_unit_bytes * 8 / bits_);
  const size_t parts = ceil_div(ceil_div(outputs_, widest), workers) * workers;
  outputs_per_task_ = ceil_div(ceil_div(outputs_, parts), unit) * unit;
  output_tasks_ = ceil_div(outputs_, outputs_per_task_);
}

void TaskGrid::divide_tokens(size_t workers, size_t most) {
  tokens_per_task_ = tokens_;
  if (most > 0) {
    const size_t wanted = ceil_div(tokens_, ceil_div(workers, output_tasks_));
    tokens_per_task_ = std::min(most, std::max(kTuning.fewest_packed_tokens, wanted));
  }
  token_tasks_ = ceil_div(tokens_, tokens_per_task_);
}

Task TaskGrid::task(size_t index) const {
  Task task;
  task.split = index % splits_;
  task.first_block = blocks_ * task.split / splits_;
  task.end_block = blocks_ * (task.split + 1) / splits_;
  task.first_output = index / splits_ % output_tasks_ * outputs_per_task_;
  task.outputs = std::min(outputs_per_task_, outputs_ - task.first_output);
  task.first_token = index / splits_ / output_tasks_ * tokens_per_task_;
  task.tokens = std::min(tokens_per_task_, tokens_ - task.first_token);
  return task;
}

}  // namespace nm_export
