#include "product/sparse_matmul.h"

#include <algorithm>

#include "product/tuning.h"

namespace nm_export {

// Half of the inputs are kept in the usual patterns.
size_t paying_workers(const SparseProduct& product, size_t workers) {
  const size_t work = product.tokens * ceil_div(product.inputs, 2) * product.weight.outputs;
  return std::max<size_t>(1, std::min(workers, work / kTuning.work_of_task));
}

SparseMatMul::SparseMatMul(const InstructionSet& isa, const SparseProduct& product, const Algorithm& algorithm,
                           size_t workers, Partition partition, CallBuffers& buffers)
    : algorithm_(algorithm),
      grid_(product, algorithm.limits(product), workers, partition),
      call_(isa, product, grid_.splits(), buffers) {
  algorithm.prepare(call_);
}

void SparseMatMul::finish() const {
  const SparseProduct& product = call_.product;
  const size_t numbers = product.tokens * product.weight.outputs;
  const float* sums = call_.buffers.split_sums.data();
  for (size_t split = 1; split < grid_.splits(); ++split, sums += numbers) {
    for (size_t i = 0; i < numbers; ++i) product.y[i] += sums[i];
  }
}

}  // namespace nm_export
