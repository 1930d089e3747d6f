#include "sparse_matmul.h"

#include <algorithm>

namespace nm_export {
namespace {

// Up to so many tokens add rows each on its own, and more of them share weights, as long as no times are known.
// Measured at 4096 x 1024 and 4096 x 4096 on AMD EPYC (Zen 4).
constexpr size_t kFewTokens = 3;
constexpr size_t kFewTokensOfHalves = 8;

// Of more tokens some ways are not tried. Rows of floats each on its own took twice as long as tiles at 16, and shared
// rows half as long again at 32; up to 16 these are the dense product. Packing codes takes longer.
constexpr size_t kMostTokensByRows = 8;
constexpr size_t kMostTokensByRowsOfCodes = 16;
constexpr size_t kMostTokensByShared = 16;

// Columns of a task at most. A row should be read in pieces as long as can be, or the memory does not deliver: of
// float32 rows of 14,336 numbers 7,168 at once took a sixth less time than 2,048.
constexpr size_t kRowColumns = 8192;

// By tiles, the weights of a block of channels stay in the second-level cache, which the sums of a task's tokens pass
// through.
constexpr size_t kTileTaskColumns = 1024;
constexpr size_t kTileTaskTokens = 256;
constexpr size_t kIntegerTaskTokens = 128;
constexpr size_t kFewestTileTaskTokens = 32;

// So many tasks, or half or a quarter of them, take a share of the channels of shorter rows, each at least so many
// blocks. More than one for each of two workers, so that one does not wait for the other that was late to wake up; few
// enough that adding their sums takes no time. At 4096 x 4096, int4 and two workers, four took 0.21 ms and eight 0.24.
// More tokens are many sums.
constexpr size_t kChannelTasks = 4;
constexpr size_t kBlocksOfChannelTask = 8;
constexpr size_t kMostTokensOfChannelTask = 32;

// Shared rows are read from there column by column: of rows of 16 KB, of which 64 fill that cache, 8 tokens took a
// quarter longer.
constexpr size_t kSharedTaskBytes = 4096;  // of a row

// Columns of a task are a multiple of so many bytes, so that only the last ones of a row are not whole cache lines; and
// of so many columns.
constexpr size_t kBytesUnit = 64;
constexpr size_t kColumnUnit = 64;

// Products and sums of a task that are worth the start of another worker: some 10 microseconds.
constexpr size_t kWorkOfTask = size_t{1} << 16;

}  // namespace

size_t stored_bits(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return 32;
    case WeightType::kFloat16:
    case WeightType::kBFloat16:
      return 16;
    case WeightType::kUInt8:
      return 8;
    default:
      return 4;
  }
}

// docs/semantics.md says up to how many tokens of codes are rounded everywhere.
size_t most_tokens_by_rows(const SparseProduct& product) {
  const bool rounded = product.weight.type >= WeightType::kUInt8 && product.may_round;
  return rounded ? kMostTokensByRowsOfCodes : kMostTokensByRows;
}

Ways ways_of(const InstructionSet& isa, const SparseProduct& product) {
  const size_t tokens = product.tokens;
  if (tokens == 1) return {{Way::kRows}, 1};
  if (product.weight.type < WeightType::kUInt8) {
    if (tokens > kMostTokensByShared) return {{Way::kTiles, Way::kDenseTiles}, 2};
    if (tokens > kMostTokensByRows) return {{Way::kTiles, Way::kSharedRows}, 2};
    const size_t few = product.weight.type == WeightType::kFloat32 ? kFewTokens : kFewTokensOfHalves;
    if (tokens <= few) return {{Way::kRows, Way::kSharedRows, Way::kTiles}, 3};
    if (isa.products->shared_tokens < kMostTokensByRows) return {{Way::kTiles, Way::kRows, Way::kSharedRows}, 3};
    return {{Way::kSharedRows, Way::kRows, Way::kTiles}, 3};
  }
  const bool by_rows = tokens <= most_tokens_by_rows(product);
  if (product.may_round && isa.integers->tiles != nullptr) {
    if (by_rows) return {{Way::kRows, Way::kIntegerTiles}, 2};
    return {{Way::kIntegerTiles}, 1};
  }
  // docs/semantics.md says when codes are multiplied as bytes; and as float32 the ways would round differently.
  return {{by_rows ? Way::kRows : Way::kTiles}, 1};
}

// Half of the channels are kept in the usual patterns.
size_t paying_workers(const SparseProduct& product, size_t workers) {
  const size_t work = product.tokens * ceil_div(product.channels, 2) * product.weight.columns;
  return std::max<size_t>(1, std::min(workers, work / kWorkOfTask));
}

SparseMatMul::SparseMatMul(const InstructionSet& isa, const SparseProduct& product, Way way, size_t workers, Cut cut,
                           CallBuffers& buffers)
    : kernels_(*isa.products),
      integers_(*isa.integers),
      product_(product),
      blocks_(ceil_div(product.channels, kBlockChannels)),
      way_(way),
      workers_(workers) {
  const size_t widest = widest_task();
  if (cut == Cut::kChannels && product.tokens <= kMostTokensOfChannelTask) {
    // By the shape alone, so that sums do not depend on the workers, and alike in all ways.
    const bool few = product.tokens <= most_tokens_by_rows(product);
    cut_channels(few ? kRowColumns : way_ == Way::kSharedRows ? kTileTaskColumns : widest, buffers);
  }
  // Each part of the columns rounds the values of its tokens.
  const bool by_tokens = way_ == Way::kIntegerTiles && product.tokens >= 2 * kFewestTileTaskTokens;
  cut_columns(by_tokens ? 1 : ceil_div(workers_, channel_tasks_), widest);
  if (way == Way::kRows || way == Way::kSharedRows) {
    tokens_per_task_ = product.tokens;
    token_tasks_ = 1;
    if (way == Way::kRows) list_rows(buffers);
  } else {
    cut_tokens(by_tokens ? kIntegerTaskTokens : kTileTaskTokens);
  }
}

size_t SparseMatMul::widest_task() const {
  if (way_ == Way::kRows) return kRowColumns;
  if (way_ == Way::kSharedRows) return kSharedTaskBytes * 8 / stored_bits(product_.weight.type);
  return kTileTaskColumns;
}

void SparseMatMul::cut_channels(size_t widest, CallBuffers& buffers) {
  const size_t pieces = ceil_div(product_.weight.columns, widest);
  const size_t most = std::min(kChannelTasks / pieces, blocks_ / kBlocksOfChannelTask);
  while (2 * channel_tasks_ <= most) channel_tasks_ *= 2;  // three would keep two workers busy badly
  sums_ = buffers.sums.reserve((channel_tasks_ - 1) * product_.tokens * product_.weight.columns);
}

// Into as many equal parts as keep all workers busy, of at most `widest` columns.
void SparseMatMul::cut_columns(size_t workers, size_t widest) {
  const size_t unit = std::max(kColumnUnit, kBytesUnit * 8 / stored_bits(product_.weight.type));
  const size_t parts = ceil_div(ceil_div(product_.weight.columns, widest), workers) * workers;
  columns_per_task_ = ceil_div(ceil_div(product_.weight.columns, parts), unit) * unit;
  column_tasks_ = ceil_div(product_.weight.columns, columns_per_task_);
}

void SparseMatMul::cut_tokens(size_t most) {
  const size_t wanted = ceil_div(product_.tokens, ceil_div(workers_, column_tasks_));
  tokens_per_task_ = std::min(most, std::max(kFewestTileTaskTokens, wanted));
  token_tasks_ = ceil_div(product_.tokens, tokens_per_task_);
}

SparseMatMul::Task SparseMatMul::task(size_t index) const {
  Task task;
  task.share = index % channel_tasks_;
  task.first_block = blocks_ * task.share / channel_tasks_;
  task.end_block = blocks_ * (task.share + 1) / channel_tasks_;
  task.first_column = index / channel_tasks_ % column_tasks_ * columns_per_task_;
  task.columns = std::min(columns_per_task_, product_.weight.columns - task.first_column);
  task.first_token = index / channel_tasks_ / column_tasks_ * tokens_per_task_;
  task.tokens = std::min(tokens_per_task_, product_.tokens - task.first_token);
  return task;
}

// Where the first column of the first token of a task goes; rows have the columns of the weight.
float* SparseMatMul::sums_of(const Task& task) const {
  const size_t numbers = product_.tokens * product_.weight.columns;
  float* const all = task.share == 0 ? product_.y : sums_ + (task.share - 1) * numbers;
  return all + task.first_token * product_.weight.columns + task.first_column;
}

void SparseMatMul::start_sums(const Task& task) const {
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product_.weight.columns) std::fill_n(y, task.columns, 0.0f);
}

// Adds what y has besides sums over channels.
void SparseMatMul::end_sums(const Task& task) const {
  if (task.share != 0) return;
  const float* bias = product_.bias + task.first_column;
  const float* offset = product_.offset + task.first_column;
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product_.weight.columns) {
    const float shift = product_.token_shift[task.first_token + t];
    for (size_t c = 0; c < task.columns; ++c) y[c] += shift * offset[c] + bias[c];
  }
}

void SparseMatMul::run(size_t index, WorkerBuffers& buffers) const {
  switch (way_) {
    case Way::kRows:
      return add_rows(task(index));
    case Way::kSharedRows:
      return add_shared_rows(task(index), buffers);
    case Way::kTiles:
    case Way::kDenseTiles:
      return add_tiles(task(index), buffers);
    case Way::kIntegerTiles:
      return add_integer_tiles(task(index), buffers);
  }
}

void SparseMatMul::finish() const {
  const size_t numbers = product_.tokens * product_.weight.columns;
  const float* sums = sums_;
  for (size_t share = 1; share < channel_tasks_; ++share, sums += numbers) {
    for (size_t i = 0; i < numbers; ++i) product_.y[i] += sums[i];
  }
}

}  // namespace nm_export
