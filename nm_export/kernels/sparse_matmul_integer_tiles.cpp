// Many tokens that may be rounded to 8 bits: tiles of codes, which the tokens share, are multiplied as integers.
//
// A token keeps other channels than its neighbour, so the tile has them all, and pruned ones are multiplied by 0:
// putting a token's own rows of bytes side by side would take longer than that.
#include <algorithm>
#include <bitset>

#include "sparse_matmul.h"

namespace nm_export {

void SparseMatMul::add_integer_tiles(const Task& task, WorkerBuffers& buffers) const {
  const Weight& weight = product_.weight;
  const IntegerTileKernels& kernels = *integers_.tiles;
  const auto pack = kernels.pack[code_type()];
  const size_t tokens = task.tokens;
  const size_t tile_columns = kernels.tile_columns;
  const size_t tiles = ceil_div(task.columns, tile_columns);
  const size_t group = std::min(weight.block_size, kBlockChannels);
  uint8_t* const tile = buffers.codes.reserve(kBlockChannels * tile_columns);
  uint32_t* const rows = buffers.rows.reserve(tokens * kBlockChannels);
  float* const row_values = buffers.channels.reserve(tokens * kBlockChannels);
  size_t* const counts = buffers.row_counts.reserve(tokens);
  RoundedValues* const rounded = buffers.rounded.reserve(tokens);
  float* const sums = buffers.sums.reserve(tiles * tokens * tile_columns);  // [tile, token, column]
  std::fill_n(sums, tiles * tokens * tile_columns, 0.0f);
  const auto kept = [&](size_t t) {
    return Rows{rows + t * kBlockChannels, row_values + t * kBlockChannels, counts[t]};
  };

  for (size_t block = task.first_block; block < task.end_block; ++block) {
    const size_t k = block * kBlockChannels;
    const size_t channels = channels_of(block);
    const float* const values = product_.values + task.first_token * product_.channels + k;
    for (size_t t = 0; t < tokens; ++t) {
      const uint64_t mask = kernels_.compact(values + t * product_.channels, channels, k, rows + t * kBlockChannels,
                                             row_values + t * kBlockChannels);
      counts[t] = std::bitset<kBlockChannels>(mask).count();
      kernels.round(kept(t), k, group, rounded[t]);
    }
    Prefetch next = prefetch_block(block + 1, task, tiles * (ceil_div(tokens, kTokensOfIntegerTiles) + kMostQuads));
    for (size_t c = 0; c < task.columns; c += tile_columns) {
      const Part part{k, channels, task.first_column + c, std::min(tile_columns, task.columns - c)};
      float* const y = sums + c * tokens;
      pack(weight, part, tile, next);
      kernels.add(weight, part, tile, rounded, tokens, y, next);
      for (size_t t = 0; t < tokens; ++t) {
        if (rounded[t].unrounded != 0) add_unrounded(part, kept(t), rounded[t].unrounded, y + t * tile_columns);
      }
    }
  }
  store_sums(task, sums, tile_columns);
}

// Adds the groups of channels whose bits are set as float32.
void SparseMatMul::add_unrounded(const Part& part, const Rows& kept, uint32_t groups, float* y) const {
  const Weight& weight = product_.weight;
  const size_t size = std::min(weight.block_size, kBlockChannels);
  const auto add = integers_.add_unrounded[code_type()];
  for (size_t i = 0; i < kept.count; ++i) {
    if ((groups >> ((kept.row[i] - part.first_row) / size) & 1u) == 0) continue;
    add(weight, part.first_column, {kept.row + i, kept.value + i, 1}, part.columns, y);
  }
}

}  // namespace nm_export
