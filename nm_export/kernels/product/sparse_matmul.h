// Products that read only the weight rows of inputs that are not zero: docs/semantics.md without ONNX Runtime.
//
// For hosts: the operators, the C interface and tests. Nothing is checked here.
#pragma once

#include "product/algorithm.h"

namespace nm_export {

// How many workers pay.
size_t paying_workers(const SparseProduct& product, size_t workers);

// One call, divided into tasks that are independent of each other. y does not depend on the number of workers, nor on
// which of the candidates computes it.
class SparseMatMul {
 public:
  // `algorithm` is one of the candidates of `product`. Its pointers and `buffers` outlive this object. `workers` is how
  // many tasks run at once. Throws std::bad_alloc.
  SparseMatMul(const InstructionSet& isa, const SparseProduct& product, const Algorithm& algorithm, size_t workers,
               Partition partition, CallBuffers& buffers);

  size_t tasks() const { return grid_.tasks(); }

  // Computes what belongs to a task. Throws std::bad_alloc when the buffers cannot grow.
  void run(size_t task, WorkerBuffers& buffers) const { algorithm_.run(call_, grid_.task(task), buffers); }

  // Once, after all tasks.
  void finish() const;

 private:
  const Algorithm& algorithm_;
  const TaskGrid grid_;
  const ProductCall call_;
};

}  // namespace nm_export
