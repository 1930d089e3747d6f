#include "sparse_matmul.h"

#include <algorithm>
#include <bitset>

namespace nm_export {
namespace {

constexpr size_t kCacheLine = 64;

// Up to so many tokens add rows from memory; more of them share packed tiles. Measured at 4096 x 1024 and 4096 x 4096 on
// AMD EPYC (Zen 4): at 6 tokens the times of float32 weights are equal, at 8 tiles take a tenth to a quarter less. Of
// codes, up to 8 tokens multiply bytes: docs/semantics.md.
constexpr size_t kFewTokens = 6;
constexpr size_t kFewTokensOfCodes = 8;

// Columns of a task at most. A row should be read in pieces as long as can be, or the memory does not deliver: of
// float32 rows of 14,336 numbers 7,168 at once took a sixth less time than 2,048.
constexpr size_t kRowColumns = 8192;

// So many tasks take a share of the channels of shorter rows, each at least so many blocks of them. More than one for
// each of two workers, so that one does not wait for the other that was late to wake up; few enough that adding their
// sums takes no time. At 4096 x 4096, int4 and two workers, four took 0.21 ms and eight 0.24.
constexpr size_t kChannelTasks = 4;
constexpr size_t kBlocksOfChannelTask = 8;

// By tiles, the weights of a block of channels stay in the second-level cache, which the sums of a task's tokens pass
// through.
constexpr size_t kTileTaskColumns = 1024;
constexpr size_t kTileTaskTokens = 256;
constexpr size_t kFewestTileTaskTokens = 32;

// Columns of a task are a multiple of this, so that only the last ones of a row are not whole cache lines.
constexpr size_t kColumnUnit = 64;

// Products and sums of a task that are worth the start of another worker: some 10 microseconds.
constexpr size_t kWorkOfTask = size_t{1} << 16;

size_t bits_of(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return 32;
    case WeightType::kFloat16:
    case WeightType::kBFloat16:
      return 16;
    case WeightType::kInt8:
    case WeightType::kUInt8:
      return 8;
    default:
      return 4;
  }
}

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

SparseMatMul::SparseMatMul(const InstructionSet& isa, const SparseProduct& product, size_t workers, Cut cut,
                           CallBuffers& buffers)
    : kernels_(*isa.products),
      integers_(*isa.integers),
      product_(product),
      blocks_(ceil_div(product.channels, kBlockChannels)),
      by_rows_(product.tokens <= (product.weight.type >= WeightType::kInt8 ? kFewTokensOfCodes : kFewTokens)) {
  // Half of the channels are kept in the usual patterns.
  const size_t work = product.tokens * ceil_div(product.channels, 2) * product.weight.columns;
  workers_ = std::max<size_t>(1, std::min(workers, work / kWorkOfTask));
  if (by_rows_) {
    if (cut == Cut::kChannels) cut_channels(buffers);
    cut_columns(ceil_div(workers_, channel_tasks_), kRowColumns);
    tokens_per_task_ = product.tokens;
    list_rows(buffers);
  } else {
    cut_columns(workers_, kTileTaskColumns);
    const size_t wanted = ceil_div(product.tokens, ceil_div(workers_, column_tasks_));
    tokens_per_task_ = std::min(kTileTaskTokens, std::max(kFewestTileTaskTokens, wanted));
  }
  token_tasks_ = ceil_div(product.tokens, tokens_per_task_);
}

// Into as many equal parts as keep all workers busy, of at most `widest` columns. A part begins with a block of codes.
void SparseMatMul::cut_columns(size_t workers, size_t widest) {
  const size_t unit = std::max(kColumnUnit, product_.weight.block_size);
  const size_t parts = ceil_div(ceil_div(product_.weight.columns, widest), workers) * workers;
  columns_per_task_ = ceil_div(ceil_div(product_.weight.columns, parts), unit) * unit;
  column_tasks_ = ceil_div(product_.weight.columns, columns_per_task_);
}

// By the shape alone, so that sums do not depend on the workers.
void SparseMatMul::cut_channels(CallBuffers& buffers) {
  const size_t pieces = ceil_div(product_.weight.columns, kRowColumns);
  channel_tasks_ = std::max<size_t>(1, std::min(kChannelTasks / pieces, blocks_ / kBlocksOfChannelTask));
  sums_ = buffers.sums.reserve((channel_tasks_ - 1) * product_.tokens * product_.weight.columns);
}

void SparseMatMul::list_rows(CallBuffers& buffers) {
  lists_per_block_ = product_.tokens == 1 ? 1 : product_.tokens + 1;
  uint32_t* const rows = buffers.rows.reserve(lists_per_block_ * product_.channels);
  float* const values = buffers.row_values.reserve(lists_per_block_ * product_.channels);
  size_t* const ends = buffers.row_ends.reserve(lists_per_block_ * blocks_ + 1);
  size_t count = 0;
  size_t lists = 0;
  ends[lists++] = 0;
  for (size_t first = 0; first < product_.channels; first += kBlockChannels) {
    const size_t channels = std::min(kBlockChannels, product_.channels - first);
    uint64_t any = 0;
    for (size_t t = 0; t < product_.tokens; ++t) {
      const float* v = product_.values + t * product_.channels + first;
      const uint64_t mask = kernels_.compact(v, channels, first, rows + count, values + count);
      any |= mask;
      count += std::bitset<kBlockChannels>(mask).count();
      ends[lists++] = count;
    }
    if (product_.tokens == 1) continue;
    for (size_t k = 0; k < channels; ++k) {
      if (any >> k & 1u) rows[count++] = static_cast<uint32_t>(first + k);
    }
    ends[lists++] = count;
  }
  rows_ = rows;
  row_values_ = values;
  row_ends_ = ends;
}

Rows SparseMatMul::rows_of(size_t block, size_t token) const {
  const size_t* ends = row_ends_ + block * lists_per_block_ + token;
  return {rows_ + ends[0], row_values_ + ends[0], ends[1] - ends[0]};
}

Rows SparseMatMul::rows_of_any_token(size_t block) const {
  if (block >= blocks_) return {nullptr, nullptr, 0};
  return rows_of(block, lists_per_block_ - 1);
}

size_t SparseMatMul::bytes_of(size_t weights) const { return weights * bits_of(product_.weight.type) / 8; }

// Of a part of the weight, in so many steps.
Prefetch SparseMatMul::prefetch(const Part& part, size_t steps) const {
  const size_t first = part.first_row * product_.weight.columns + part.first_column;
  Prefetch next{};
  next.at = static_cast<const char*>(product_.weight.data) + bytes_of(first);
  next.stride = bytes_of(product_.weight.columns);
  next.row_lines = ceil_div(bytes_of(part.columns), kCacheLine);
  next.rows = part.rows;
  next.lines_per_step = ceil_div(next.row_lines * next.rows, steps);
  return next;
}

void SparseMatMul::run(size_t task, WorkerBuffers& buffers) const {
  const size_t first_column = task / channel_tasks_ % column_tasks_ * columns_per_task_;
  const size_t columns = std::min(columns_per_task_, product_.weight.columns - first_column);
  if (by_rows_) {
    add_rows(first_column, columns, task % channel_tasks_);
  } else {
    const size_t first_token = task / column_tasks_ * tokens_per_task_;
    add_tiles(first_column, columns, first_token, std::min(tokens_per_task_, product_.tokens - first_token), buffers);
  }
}

void SparseMatMul::finish() const {
  const size_t numbers = product_.tokens * product_.weight.columns;
  const float* sums = sums_;
  for (size_t task = 1; task < channel_tasks_; ++task, sums += numbers) {
    for (size_t i = 0; i < numbers; ++i) product_.y[i] += sums[i];
  }
}

void SparseMatMul::add_rows(size_t first_column, size_t columns, size_t channel_task) const {
  constexpr auto kFirstCodes = static_cast<size_t>(WeightType::kInt8);
  const auto type = static_cast<size_t>(product_.weight.type);
  const bool by_integers = product_.may_round && type >= kFirstCodes;
  const auto add = by_integers ? integers_.add_rows[type - kFirstCodes] : kernels_.add_rows[type];
  const float* bias = product_.bias + first_column;
  const float* offset = product_.offset + first_column;
  const size_t tokens = product_.tokens;
  const size_t stride = product_.weight.columns;
  float* y = product_.y + first_column;
  if (channel_task > 0) y = sums_ + (channel_task - 1) * tokens * stride + first_column;
  for (size_t t = 0; t < tokens; ++t) {
    const float shift = product_.token_shift[t];
    for (size_t c = 0; c < columns; ++c) y[t * stride + c] = channel_task > 0 ? 0.0f : shift * offset[c] + bias[c];
  }
  const size_t end = blocks_ * (channel_task + 1) / channel_tasks_;
  for (size_t block = blocks_ * channel_task / channel_tasks_; block < end; ++block) {
    const Rows next = rows_of_any_token(block + 1);  // behind `end` too: there a worker's next task begins
    for (size_t t = 0; t < tokens; ++t) {
      const size_t start = next.count * t / tokens;
      const Rows share{next.row + start, nullptr, next.count * (t + 1) / tokens - start};
      add(product_.weight, first_column, rows_of(block, t), share, columns, y + t * stride);
    }
  }
}

void SparseMatMul::add_tiles(size_t first_column, size_t columns, size_t first_token, size_t tokens,
                             WorkerBuffers& buffers) const {
  const auto pack = kernels_.pack_tile[static_cast<int>(product_.weight.type)];
  const size_t tile_columns = kernels_.tile_columns;
  const size_t tiles = ceil_div(columns, tile_columns);
  float* const tile = buffers.tile.reserve(kBlockChannels * tile_columns);
  float* const x = buffers.channels.reserve(tokens * kBlockChannels);
  uint64_t* const masks = buffers.masks.reserve(tokens);
  float* const sums = buffers.sums.reserve(tiles * tokens * tile_columns);  // [tile, token, column]
  std::fill_n(sums, tiles * tokens * tile_columns, 0.0f);

  const float* const values = product_.values + first_token * product_.channels;
  for (size_t k = 0; k < product_.channels; k += kBlockChannels) {
    const size_t rows = std::min(kBlockChannels, product_.channels - k);
    for (size_t t = 0; t < tokens; ++t) {
      masks[t] = kernels_.pack_channels(values + t * product_.channels + k, rows, x + t * kBlockChannels);
    }
    // Meanwhile the next block comes to the second-level cache.
    const Part next_block{k + rows, std::min(kBlockChannels, product_.channels - k - rows), first_column, columns};
    Prefetch next = prefetch(next_block, tiles * (tokens + ceil_div(rows, kPackedRowsPerStep)));
    for (size_t i = 0; i < tiles; ++i) {
      const size_t start = i * tile_columns;
      const size_t count = std::min(tile_columns, columns - start);
      pack(product_.weight, Part{k, rows, first_column + start, count}, tile, next);
      kernels_.add_tile(tile, BlockInput{x, masks, tokens}, count, sums + start * tokens, next);
    }
  }

  for (size_t t = 0; t < tokens; ++t) {
    const float shift = product_.token_shift[first_token + t];
    float* const y = product_.y + (first_token + t) * product_.weight.columns;
    for (size_t start = 0; start < columns; start += tile_columns) {
      const float* sum = sums + start * tokens + t * tile_columns;
      const size_t count = std::min(tile_columns, columns - start);
      for (size_t c = 0; c < count; ++c) {
        const size_t column = first_column + start + c;
        y[column] = sum[c] + (shift * product_.offset[column] + product_.bias[column]);
      }
    }
  }
}

}  // namespace nm_export
