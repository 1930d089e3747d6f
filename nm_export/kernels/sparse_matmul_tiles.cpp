// Many tokens: the weights of a block of channels are packed to tiles, which the tokens share.
#include <algorithm>

#include "sparse_matmul.h"

namespace nm_export {
namespace {

constexpr size_t kCacheLine = 64;

}  // namespace

size_t SparseMatMul::channels_of(size_t block) const {
  return block < blocks_ ? std::min(kBlockChannels, product_.channels - block * kBlockChannels) : 0;
}

// Of a block of channels, or nothing where there is none, in so many steps.
Prefetch SparseMatMul::prefetch_block(size_t block, const Task& task, size_t steps) const {
  const size_t bits = stored_bits(product_.weight.type);
  const size_t first = block * kBlockChannels * product_.weight.columns + task.first_column;
  Prefetch next{};
  next.at = static_cast<const char*>(product_.weight.data) + first * bits / 8;
  next.stride = product_.weight.columns * bits / 8;
  next.row_lines = ceil_div(task.columns * bits / 8, kCacheLine);
  next.rows = channels_of(block);
  next.lines_per_step = ceil_div(next.row_lines * next.rows, steps);
  return next;
}

void SparseMatMul::add_tiles(const Task& task, WorkerBuffers& buffers) const {
  const auto pack = kernels_.pack_tile[static_cast<int>(product_.weight.type)];
  const auto add = way_ == Way::kDenseTiles ? kernels_.add_dense_tile : kernels_.add_tile;
  const size_t tokens = task.tokens;
  const size_t tile_columns = kernels_.tile_columns;
  const size_t tiles = ceil_div(task.columns, tile_columns);
  float* const tile = buffers.tile.reserve(kBlockChannels * tile_columns);
  float* const x = buffers.channels.reserve(tokens * kBlockChannels);
  uint64_t* const masks = buffers.masks.reserve(tokens);
  float* const sums = buffers.sums.reserve(tiles * tokens * tile_columns);
  std::fill_n(sums, tiles * tokens * tile_columns, 0.0f);

  for (size_t block = task.first_block; block < task.end_block; ++block) {
    const size_t k = block * kBlockChannels;
    const size_t channels = channels_of(block);
    const float* const values = product_.values + task.first_token * product_.channels + k;
    for (size_t t = 0; t < tokens; ++t) {
      masks[t] = kernels_.pack_channels(values + t * product_.channels, channels, x + t * kBlockChannels);
    }
    // Meanwhile the next block comes to the second-level cache.
    Prefetch next = prefetch_block(block + 1, task, tiles * (tokens + ceil_div(channels, kPackedRowsPerStep)));
    for (size_t start = 0; start < task.columns; start += tile_columns) {
      const size_t count = std::min(tile_columns, task.columns - start);
      pack(product_.weight, Part{k, channels, task.first_column + start, count}, tile, next);
      add(tile, BlockInput{x, masks, tokens, channels}, count, sums + start * tokens, next);
    }
  }
  store_sums(task, sums, tile_columns);
}

// From [tile, token, column].
void SparseMatMul::store_sums(const Task& task, const float* sums, size_t tile_columns) const {
  const float* bias = product_.bias + task.first_column;
  const float* offset = product_.offset + task.first_column;
  float* y = sums_of(task);
  for (size_t t = 0; t < task.tokens; ++t, y += product_.weight.columns) {
    const float shift = product_.token_shift[task.first_token + t];
    for (size_t start = 0; start < task.columns; start += tile_columns) {
      const float* sum = sums + start * task.tokens + t * tile_columns - start;
      const size_t end = std::min(start + tile_columns, task.columns);
      for (size_t c = start; c < end; ++c) {
        y[c] = task.share == 0 ? sum[c] + (shift * offset[c] + bias[c]) : sum[c];
      }
    }
  }
}

}  // namespace nm_export
