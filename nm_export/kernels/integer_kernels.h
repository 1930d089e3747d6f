// The inner loops of a product of codes with values that are rounded to 8 bits: docs/semantics.md, accuracy level 4.
//
// As row_kernels.h says, the files of an instruction set use no inline function of the C++ library.
#pragma once

#include "product_kernels.h"

namespace nm_export {

// The values of four channels, times the scales of a block of columns and rounded, are the four bytes of one number, as
// instructions that multiply bytes want them.
constexpr size_t kQuad = 4;
constexpr size_t kMostQuads = kBlockChannels / kQuad;

// Blocks of columns whose values are rounded together.
constexpr size_t kStretchBlocks = 16;

// The values of one token in one block of channels, rounded for up to kStretchBlocks blocks of columns. What it has for
// more blocks is arbitrary.
struct RoundedValues {
  // For each four channels the bytes that multiply their codes. Longer than it need be, so that vectors can be loaded.
  alignas(64) uint32_t quads[kMostQuads][2 * kStretchBlocks];
  alignas(64) int32_t zero[2 * kStretchBlocks];  // what the zero points add to a sum
  alignas(64) float step[2 * kStretchBlocks];    // what a sum is multiplied by
  uint32_t unrounded;                            // bit b: block b has none of the above and adds 0
};

// The scales and zero points of a block of channels and up to kStretchBlocks blocks of columns.
struct BlockScales {
  alignas(64) float scale[kBlockChannels][kStretchBlocks];
  alignas(64) int32_t zero_point[kBlockChannels][kStretchBlocks];  // of unsigned codes
  bool is_symmetric;  // then all zero points are `shift`, and those above are arbitrary
  int32_t shift;
};

// So many tokens are summed up together.
constexpr size_t kTokensOfIntegerTiles = 4;

// Where tokens share tiles of codes: those of a block of channels in so many columns, four channels side by side.
struct IntegerTileKernels {
  // Columns of a tile, a multiple of every block of codes. It holds kBlockChannels bytes for each.
  size_t tile_columns;

  // Packs a part of a weight to a tile. What the tile has more becomes arbitrary.
  void (*pack[4])(const Weight& weight, const Part& part, uint8_t* tile, Prefetch& next);

  // Of the rows of a part, which has at most kStretchBlocks blocks of columns. Where there are none, scales become 0.
  void (*pack_scales[4])(const Weight& weight, const Part& part, BlockScales& scales);

  // Rounds the values of one token in the block of channels from `first_channel` on, of which it keeps `kept`. Channels
  // that are not kept become 0.
  void (*round)(const BlockScales& scales, const Rows& kept, size_t first_channel, RoundedValues& rounded);

  // y[t, c] += step * (sum over the first `channels` channels of value * code - zero) for c < columns, with the values
  // rounded[t], which are for blocks of `block_size` columns; the first column is of block `block`. y has tile_columns
  // numbers a token, of which those beyond `columns` become arbitrary.
  void (*add)(const uint8_t* tile, const RoundedValues* rounded, size_t tokens, size_t channels, size_t block,
              size_t block_size, size_t columns, float* y, Prefetch& next);
};

// Indexed, as its parts are, by WeightType less kInt8.
struct IntegerKernels {
  // What add_rows of ProductKernels does, with the rows of one block of channels of one token: add.count <=
  // kBlockChannels. Its integers are the same in every instruction set.
  void (*add_rows[4])(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y);

  // The same as float32, for columns of one block: where the values cannot be rounded.
  void (*add_unrounded[4])(const Weight& weight, size_t first_column, const Rows& add, size_t columns, float* y);

  // Null where tiles of float32 are faster.
  const IntegerTileKernels* tiles;
};

extern const IntegerKernels kPortableIntegers;
#ifdef NM_EXPORT_X86_64
extern const IntegerKernels kAvx2Integers;
extern const IntegerKernels kAvx512Integers;
extern const IntegerKernels kAvx512VnniIntegers;
#endif

}  // namespace nm_export
