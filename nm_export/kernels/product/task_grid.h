// How a product is divided into tasks.
#pragma once

#include "product/sparse_product.h"

namespace nm_export {

// What tasks of few tokens may have for their own: outputs, or, split-K, some of the inputs that are summed up in them,
// too. Whole rows are read faster than pieces of them, but then the sums of the splits have to be added in the end.
enum class Partition { kOutputs, kSplitK };

// How much of a product one task of an algorithm may take.
struct TaskLimits {
  size_t outputs;
  size_t split_k_outputs;  // so wide are the rows that are read as one, where split-K is decided
  bool divides_outputs;    // among workers; otherwise only because of `outputs`
  size_t tokens;           // 0: all of them, however many
};

// What a task computes: some tokens' sums of some outputs, over the blocks of inputs [first_block, end_block).
struct Task {
  size_t first_output;
  size_t outputs;
  size_t first_token;
  size_t tokens;
  size_t first_block;
  size_t end_block;
  size_t split;  // of the inputs: the first one's sums go to y, with all that y has besides them
};

// Up to so many tokens may gather rows each on its own.
size_t most_tokens_gather_rows(const SparseProduct& product);

// Tasks that are independent of each other. How inputs are split depends on the shape alone, so that sums do not depend
// on the number of workers.
class TaskGrid {
 public:
  // `workers` is how many tasks run at once.
  TaskGrid(const SparseProduct& product, const TaskLimits& limits, size_t workers, Partition partition);

  size_t tasks() const { return output_tasks_ * splits_ * token_tasks_; }
  size_t splits() const { return splits_; }
  Task task(size_t index) const;

 private:
  void divide_inputs(size_t widest);
  void divide_outputs(size_t workers, size_t widest);
  void divide_tokens(size_t workers, size_t most);

  const size_t tokens_;
  const size_t outputs_;
  const size_t bits_;  // of a number of the weight
  const size_t blocks_;
  size_t splits_ = 1;
  size_t outputs_per_task_ = 0;
  size_t output_tasks_ = 0;
  size_t tokens_per_task_ = 0;
  size_t token_tasks_ = 0;
};

}  // namespace nm_export
