// Some more tokens: each row that any of them keeps is multiplied for all of them, where it lies.
#include <utility>

#include "sparse_matmul.h"

namespace nm_export {
namespace {

// All tokens' values in a block of channels, packed, and the rows that any token needs.
struct SharedBlock {
  float* x;
  uint32_t rows[kBlockChannels];
  size_t count;

  Rows list() const { return {rows, nullptr, count}; }
};

// Behind the last block there are no channels.
void load(const ProductKernels& kernels, const SparseProduct& product, size_t first, size_t channels,
          SharedBlock& block) {
  uint64_t any = 0;
  for (size_t t = 0; channels > 0 && t < product.tokens; ++t) {
    any |= kernels.pack_channels(product.values + t * product.channels + first, channels, block.x + t * kBlockChannels);
  }
  block.count = 0;
  for (size_t i = 0; i < channels; ++i) {
    block.rows[block.count] = static_cast<uint32_t>(first + i);
    block.count += any >> i & 1u;
  }
}

}  // namespace

void SparseMatMul::add_shared_rows(const Task& task, WorkerBuffers& buffers) const {
  const auto add = kernels_.add_shared_rows[static_cast<size_t>(product_.weight.type)];
  const size_t numbers = product_.tokens * kBlockChannels;
  float* const x = buffers.channels.reserve(2 * numbers);
  SharedBlock blocks[] = {{x, {}, 0}, {x + numbers, {}, 0}};
  SharedBlock* now = &blocks[0];
  SharedBlock* next = &blocks[1];
  start_sums(task);
  load(kernels_, product_, task.first_block * kBlockChannels, channels_of(task.first_block), *now);
  for (size_t block = task.first_block; block < task.end_block; ++block) {
    load(kernels_, product_, (block + 1) * kBlockChannels, channels_of(block + 1), *next);
    const BlockInput input{now->x, nullptr, product_.tokens, channels_of(block)};
    add(product_.weight, task.first_column, now->list(), input, next->list(), task.columns, sums_of(task));
    std::swap(now, next);
  }
  end_sums(task);
}

}  // namespace nm_export
