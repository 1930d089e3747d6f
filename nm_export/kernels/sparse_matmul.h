// Products that read only the weight rows of channels that are not zero: docs/semantics.md without ONNX Runtime.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "aligned_buffer.h"
#include "instruction_set.h"

namespace nm_export {

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Of a number of a weight.
size_t stored_bits(WeightType type);

// y = values W + token_shift * offset + bias.
struct SparseProduct {
  Weight weight;             // [channels, columns]
  const float* values;       // [tokens, channels]
  const float* bias;         // [columns]
  const float* token_shift;  // [tokens]
  const float* offset;       // [columns]
  float* y;                  // [tokens, columns]
  size_t tokens;
  size_t channels;  // < 2^32
  bool may_round;   // products with codes may round values to 8 bits: accuracy level 4
};

// Buffers of one call, and of one worker of it, kept between calls.
struct CallBuffers {
  AlignedBuffer<uint32_t> rows;
  AlignedBuffer<float> row_values;
  AlignedBuffer<size_t> row_ends;
  AlignedBuffer<float> sums;
};
struct WorkerBuffers {
  AlignedBuffer<float> tile;
  AlignedBuffer<float> channels;
  AlignedBuffer<uint64_t> masks;
  AlignedBuffer<float> sums;
  AlignedBuffer<uint8_t> codes;
  AlignedBuffer<uint32_t> rows;
  AlignedBuffer<size_t> row_counts;
  AlignedBuffer<RoundedValues> rounded;
};

// Few tokens add rows where they lie, each its own or all of them each row that one of them keeps. More of them share
// packed tiles, of which each takes its own rows, or all take all: the dense product.
enum class Way { kRows, kSharedRows, kTiles, kDenseTiles, kIntegerTiles };

// Ways that give the same sums, to the bit where they are finite. The first one is the fastest where it was measured.
struct Ways {
  std::array<Way, 3> way;
  size_t count;
};
Ways ways_of(const InstructionSet& isa, const SparseProduct& product);

// Up to so many tokens may add rows each on its own.
size_t most_tokens_by_rows(const SparseProduct& product);

// How many workers pay.
size_t paying_workers(const SparseProduct& product, size_t workers);

// What tasks of few tokens may have for their own: columns of y, or some of the channels that are summed up in them,
// too. Whole rows are read faster than pieces of them, but then `finish` has to add sums.
enum class Cut { kColumns, kChannels };

// One call, cut to tasks that are independent of each other. y does not depend on the number of workers, nor on which
// of its ways is taken.
class SparseMatMul {
 public:
  // `product` has at least one token, channel and column, and `way` is one of its ways. Its pointers and `buffers`
  // outlive this object. `workers` is how many tasks run at once. Throws std::bad_alloc.
  SparseMatMul(const InstructionSet& isa, const SparseProduct& product, Way way, size_t workers, Cut cut,
               CallBuffers& buffers);

  size_t tasks() const { return column_tasks_ * channel_tasks_ * token_tasks_; }

  // Computes what belongs to a task. Throws std::bad_alloc when the buffers cannot grow.
  void run(size_t task, WorkerBuffers& buffers) const;

  // Once, after all tasks.
  void finish() const;

 private:
  // What a task computes: some tokens' sums of some columns, over the blocks of channels [first_block, end_block).
  struct Task {
    size_t first_column;
    size_t columns;
    size_t first_token;
    size_t tokens;
    size_t first_block;
    size_t end_block;
    size_t share;  // of the channels: the first one's sums go to y, with all that y has besides them
  };

  size_t code_type() const {
    return static_cast<size_t>(product_.weight.type) - static_cast<size_t>(WeightType::kUInt8);
  }
  size_t widest_task() const;
  void cut_channels(size_t widest, CallBuffers& buffers);
  void cut_columns(size_t workers, size_t widest);
  void cut_tokens(size_t most);
  Task task(size_t index) const;
  float* sums_of(const Task& task) const;

  void list_rows(CallBuffers& buffers);
  Rows rows_of(size_t block, size_t token) const;
  Rows rows_of_any_token(size_t block) const;
  void start_sums(const Task& task) const;
  void end_sums(const Task& task) const;
  using AddRows = void (*)(const Weight&, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                           float* y);
  void add_rows(const Task& task) const;
  void add_blocks(const Task& task, AddRows add) const;
  void add_groups(const Task& task, AddRows add) const;
  void add_shared_rows(const Task& task, WorkerBuffers& buffers) const;

  void add_tiles(const Task& task, WorkerBuffers& buffers) const;
  void add_integer_tiles(const Task& task, WorkerBuffers& buffers) const;
  void add_unrounded(const Part& part, const Rows& kept, uint32_t groups, float* y) const;
  size_t channels_of(size_t block) const;
  Prefetch prefetch_block(size_t block, const Task& task, size_t steps) const;
  void store_sums(const Task& task, const float* sums, size_t tile_columns) const;

  const ProductKernels& kernels_;
  const IntegerKernels& integers_;
  const SparseProduct product_;
  const size_t blocks_;
  const Way way_;
  const size_t workers_;
  size_t columns_per_task_ = 0;
  size_t column_tasks_ = 0;
  size_t channel_tasks_ = 1;
  size_t tokens_per_task_ = 0;
  size_t token_tasks_ = 0;

  // For each block of channels the rows of every token, and then, if there are several, those of any of them.
  const uint32_t* rows_ = nullptr;
  const float* row_values_ = nullptr;
  const size_t* row_ends_ = nullptr;
  size_t lists_per_block_ = 0;

  float* sums_ = nullptr;  // [channel_tasks - 1, tokens, columns]
};

}  // namespace nm_export
