// The inner loops of a product with a pruned input, implemented once for every instruction set.
//
// As row_kernels.h says, the files of an instruction set use no inline function of the C++ library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nm_export {

// How a weight is stored. Sums are float32 whatever it is.
enum class WeightType { kFloat32, kFloat16, kBFloat16 };
constexpr int kWeightTypes = 3;

// Rows of a tile of weights: one for every bit of a mask.
constexpr size_t kTileRows = 64;

// Channels of some tokens that meet the rows of one tile; `x` and `masks` are packed one token after the other.
struct TileInput {
  const float* x;         // [tokens, kTileRows]
  const uint64_t* masks;  // bit k: channel k of the token is not zero
  size_t tokens;
};

// Bytes that are needed next, asked for a little at a time: `rows` rows of `row_lines` cache lines, `stride` bytes
// apart.
struct Prefetch {
  const char* at;
  size_t stride;
  size_t row_lines;
  size_t rows;
  size_t line;
  size_t lines_per_token;
};

struct ProductKernels {
  // Columns of a tile; its rows are packed one after the other.
  size_t tile_columns;

  // The channels of v that are not zero (a NaN is not), in ascending order, and what they hold. Returns their number.
  // Both targets have room for `channels` numbers.
  size_t (*compact)(const float* v, size_t channels, uint32_t* position, float* value);

  // y[c] += sum over i < count of value[i] * W[row[i], c], for c < columns. `weight` is at the first of these columns
  // and a row has `stride` numbers. Indexed by WeightType.
  void (*add_rows[kWeightTypes])(const void* weight, size_t stride, const uint32_t* row, const float* value,
                                 size_t count, size_t columns, float* y);

  // Packs `rows` rows of `columns` numbers, widened to float32, to a tile [kTileRows, tile_columns]. Rows and columns
  // that lack are left as they are. Indexed by WeightType.
  void (*pack_tile[kWeightTypes])(const void* weight, size_t stride, size_t rows, size_t columns, float* tile);

  // Packs the channels of a token for TileInput, and returns its mask. channels <= kTileRows.
  uint64_t (*pack_channels)(const float* v, size_t channels, float* x);

  // y[t, c] += sum over the bits k of masks[t] of x[t, k] * tile[k, c], for c < columns <= tile_columns; y has
  // tile_columns numbers a token, of which those beyond `columns` become arbitrary.
  void (*add_tile)(const float* tile, const TileInput& input, size_t columns, float* y, Prefetch& next);
};

extern const ProductKernels kPortableProducts;
#ifdef NM_EXPORT_X86_64
extern const ProductKernels kAvx2Products;
extern const ProductKernels kAvx512Products;
#endif

}  // namespace nm_export
