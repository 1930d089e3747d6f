#include "sparse_matmul.h"

#include <algorithm>
#include <cstdlib>

namespace nm_export {
namespace {

constexpr size_t kCacheLine = 64;

size_t size_of(WeightType type) { return type == WeightType::kFloat32 ? 4 : 2; }

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

size_t tune(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoul(text, nullptr, 10);
}

}  // namespace

SparseMatMul::SparseMatMul(const ProductKernels& kernels, const SparseProduct& product, CallBuffers& buffers)
    : kernels_(kernels), product_(product) {
  if (product.tokens == 1) {
    const size_t wanted = tune("NM_COLUMNS", 1024);
    column_tasks_ = std::max<size_t>(1, product.columns / wanted);
    columns_per_task_ = ceil_div(ceil_div(product.columns, column_tasks_), 32) * 32;
    tokens_per_task_ = 1;
    uint32_t* positions = buffers.positions.reserve(product.channels);
    float* values = buffers.values.reserve(product.channels);
    kept_ = kernels.compact(product.values, product.channels, positions, values);
    kept_positions_ = positions;
    kept_values_ = values;
  } else {
    columns_per_task_ = tune("NM_PANEL", 512);
    tokens_per_task_ = std::min(product.tokens, tune("NM_TOKENS", 256));
  }
  column_tasks_ = ceil_div(product.columns, columns_per_task_);
  token_tasks_ = ceil_div(product.tokens, tokens_per_task_);
}

const char* SparseMatMul::weight_at(size_t channel, size_t column) const {
  return static_cast<const char*>(product_.weight) +
         (channel * product_.columns + column) * size_of(product_.weight_type);
}

void SparseMatMul::run(size_t task, WorkerBuffers& buffers) const {
  const size_t first_column = task % column_tasks_ * columns_per_task_;
  const size_t columns = std::min(columns_per_task_, product_.columns - first_column);
  if (product_.tokens == 1) {
    run_one_token(first_column, columns);
  } else {
    const size_t first_token = task / column_tasks_ * tokens_per_task_;
    run_tokens(first_column, columns, first_token, std::min(tokens_per_task_, product_.tokens - first_token), buffers);
  }
}

void SparseMatMul::run_one_token(size_t first_column, size_t columns) const {
  float* y = product_.y + first_column;
  const float* bias = product_.bias + first_column;
  const float* offset = product_.offset + first_column;
  const float shift = product_.token_shift[0];
  for (size_t c = 0; c < columns; ++c) y[c] = bias[c] + shift * offset[c];
  kernels_.add_rows[static_cast<int>(product_.weight_type)](weight_at(0, first_column), product_.columns,
                                                            kept_positions_, kept_values_, kept_, columns, y);
}

void SparseMatMul::run_tokens(size_t first_column, size_t columns, size_t first_token, size_t tokens,
                              WorkerBuffers& buffers) const {
  const size_t tile_columns = kernels_.tile_columns;
  const size_t tiles = ceil_div(columns, tile_columns);
  float* const tile = buffers.tile.reserve(kTileRows * tile_columns);
  float* const x = buffers.channels.reserve(tokens * kTileRows);
  uint64_t* const masks = buffers.masks.reserve(tokens);
  float* const sums = buffers.sums.reserve(tiles * tokens * tile_columns);
  std::fill(sums, sums + tiles * tokens * tile_columns, 0.0f);

  const float* values = product_.values + first_token * product_.channels;
  const size_t row_bytes = columns * size_of(product_.weight_type);
  for (size_t k = 0; k < product_.channels; k += kTileRows) {
    const size_t rows = std::min(kTileRows, product_.channels - k);
    for (size_t t = 0; t < tokens; ++t) {
      masks[t] = kernels_.pack_channels(values + t * product_.channels + k, rows, x + t * kTileRows);
    }
    const size_t next_rows = std::min(kTileRows, product_.channels - k - rows);
    Prefetch next{weight_at(k + rows, first_column), product_.columns * size_of(product_.weight_type),
                  ceil_div(row_bytes, kCacheLine), next_rows, 0, 0};
    next.lines_per_token = ceil_div(next.row_lines * next_rows, tiles * tokens);
    for (size_t i = 0; i < tiles; ++i) {
      const size_t column = i * tile_columns;
      const size_t count = std::min(tile_columns, columns - column);
      kernels_.pack_tile[static_cast<int>(product_.weight_type)](weight_at(k, first_column + column), product_.columns,
                                                                 rows, count, tile);
      kernels_.add_tile(tile, TileInput{x, masks, tokens}, count, sums + column * tokens, next);
    }
  }

  for (size_t t = 0; t < tokens; ++t) {
    const size_t token = first_token + t;
    const float shift = product_.token_shift[token];
    for (size_t i = 0; i < tiles; ++i) {
      const size_t column = first_column + i * tile_columns;
      const float* sum = sums + (i * tokens + t) * tile_columns;
      const size_t count = std::min(tile_columns, first_column + columns - column);
      float* y = product_.y + token * product_.columns + column;
      for (size_t c = 0; c < count; ++c) {
        y[c] = sum[c] + (product_.bias[column + c] + shift * product_.offset[column + c]);
      }
    }
  }
}

}  // namespace nm_export
