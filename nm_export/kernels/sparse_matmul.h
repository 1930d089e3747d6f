// Products that read only the weight rows of channels that are not zero: docs/semantics.md without ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned_buffer.h"
#include "product_kernels.h"

namespace nm_export {

// y = values W + bias + token_shift * offset.
struct SparseProduct {
  const float* values;       // [tokens, channels]
  const void* weight;        // [channels, columns], of `weight_type`
  const float* bias;         // [columns]
  const float* token_shift;  // [tokens]
  const float* offset;       // [columns]
  float* y;                  // [tokens, columns]
  size_t tokens;
  size_t channels;
  size_t columns;
  WeightType weight_type;
};

// Buffers of one call, and of one worker of it; both are kept between calls.
struct CallBuffers {
  AlignedBuffer<uint32_t> positions;
  AlignedBuffer<float> values;
  AlignedBuffer<float> widened_values;  // of 16-bit values and y
  AlignedBuffer<float> widened_y;
};
struct WorkerBuffers {
  AlignedBuffer<float> tile;
  AlignedBuffer<float> channels;
  AlignedBuffer<uint64_t> masks;
  AlignedBuffer<float> sums;
};

// One call, split to tasks that are independent of each other.
class SparseMatMul {
 public:
  // `product` has at least one token, channel and column; its pointers and `buffers` outlive this object.
  // Throws std::bad_alloc.
  SparseMatMul(const ProductKernels& kernels, const SparseProduct& product, CallBuffers& buffers);

  size_t tasks() const { return column_tasks_ * token_tasks_; }

  // Computes the part of y that belongs to a task. Throws std::bad_alloc when the buffers cannot grow.
  void run(size_t task, WorkerBuffers& buffers) const;

 private:
  void run_one_token(size_t first_column, size_t columns) const;
  void run_tokens(size_t first_column, size_t columns, size_t first_token, size_t tokens, WorkerBuffers& buffers) const;
  const char* weight_at(size_t channel, size_t column) const;

  const ProductKernels& kernels_;
  const SparseProduct product_;
  size_t columns_per_task_;
  size_t column_tasks_;
  size_t tokens_per_task_;
  size_t token_tasks_;
  const uint32_t* kept_positions_ = nullptr;
  const float* kept_values_ = nullptr;
  size_t kept_ = 0;
};

}  // namespace nm_export
