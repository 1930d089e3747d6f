// The algorithms of the product, behind one interface.
//
// For SparseMatMul, which runs one of them, and for AutoTuner, which finds the fastest. Every algorithm adds a token's
// products in the order of the inputs, so that all candidates of a product give the same sums, to the bit where they
// are finite. To add one: a class in a file of its own, a function below, a line in candidates.cpp.
#pragma once

#include <array>

#include "isa/instruction_set.h"
#include "product/scratch.h"
#include "product/sparse_product.h"
#include "product/task_grid.h"

namespace nm_export {

// One call, as its tasks see it.
class ProductCall {
 public:
  ProductCall(const InstructionSet& isa, const SparseProduct& described, size_t splits, CallBuffers& call_buffers);

  const ProductKernels& kernels;
  const Int8Kernels& int8;
  const SparseProduct product;
  const size_t blocks;  // of inputs
  CallBuffers& buffers;

  // Of a block of inputs; none behind the last one.
  size_t inputs_of(size_t block) const {
    const size_t left = product.inputs - block * kBlockInputs;
    return block >= blocks ? 0 : left < kBlockInputs ? left : kBlockInputs;
  }

  // Where the first output of the first token of a task goes; rows have the outputs of the weight.
  float* sums_of(const Task& task) const;

  // For algorithms that add to y where it lies: zeros before all blocks, and after them what y has besides sums.
  void start_sums(const Task& task) const;
  void end_sums(const Task& task) const;

  // For the others: from [tile, token, output] to y, with what y has besides sums.
  void store_sums(const Task& task, const float* sums, size_t tile_outputs) const;

  // Of a block of inputs and a task's outputs, or nothing where there is none, in so many steps.
  PrefetchSchedule prefetch_block(size_t block, const Task& task, size_t steps) const;

 private:
  float* const split_sums_;  // [splits - 1, tokens, outputs]
};

class Algorithm {
 public:
  virtual const char* name() const = 0;
  virtual TaskLimits limits(const SparseProduct& product) const = 0;

  // Once, before all tasks. Throws std::bad_alloc.
  virtual void prepare(const ProductCall&) const {}

  // Computes what belongs to a task. Any number of threads may do so at once, each with its own buffers. Throws
  // std::bad_alloc when these cannot grow.
  virtual void run(const ProductCall& call, const Task& task, WorkerBuffers& buffers) const = 0;

 protected:
  ~Algorithm() = default;
};

const Algorithm& gather_rows();
const Algorithm& gather_union();
const Algorithm& packed_sparse();
const Algorithm& packed_dense();
const Algorithm& packed_int8();

// The algorithms that are worth trying. The first one is the fastest where it was measured.
struct Candidates {
  std::array<const Algorithm*, 3> algorithm;
  size_t count;
};
Candidates candidates(const InstructionSet& isa, const SparseProduct& product);

}  // namespace nm_export
