// The inner loops of a product of codes with values that are rounded to 8 bits: docs/semantics.md, accuracy level 4.
//
// As row_kernels.h says, the files of an instruction set use no inline function of the C++ library.
#pragma once

#include "product_kernels.h"

namespace nm_export {

constexpr int kCodeTypes = 2;  // kUInt8 and kUInt4

// The rounded values of four channels are the four bytes of one number, as instructions that multiply bytes want them.
constexpr size_t kQuad = 4;
constexpr size_t kMostQuads = kBlockChannels / kQuad;

// Values are rounded in groups of channels that share a scale, or of kBlockChannels, if more share it.
constexpr size_t kMostGroups = kBlockChannels / kSmallestBlock;

// The values of one token in one block of channels, rounded group by group. What of them is not kept is 0.
struct RoundedValues {
  uint32_t quads[kMostQuads];
  float step[kMostGroups];  // what a sum of integers is multiplied by, besides the scale
  float sum[kMostGroups];   // of the integers that values became
  uint32_t unrounded;       // bit g: group g cannot be rounded, and has only zeros here
};

// So many tokens are summed up together.
constexpr size_t kTokensOfIntegerTiles = 4;

// Where tokens share tiles of codes: those of a block of channels in so many columns, four channels side by side.
struct IntegerTileKernels {
  // Columns of a tile. It holds kBlockChannels bytes for each.
  size_t tile_columns;

  // Packs a part of a weight to a tile. What the tile has more becomes arbitrary.
  void (*pack[kCodeTypes])(const Weight& weight, const Part& part, uint8_t* tile, Prefetch& next);

  // Rounds the values of one token in the block of channels from `first_channel` on, of which it keeps `kept`, in
  // groups of so many channels.
  void (*round)(const Rows& kept, size_t first_channel, size_t group, RoundedValues& rounded);

  // y[t, c] += sum over the groups of channels of step * scale[c] * (sum of value * code - zero point[c] * sum), for
  // the columns of a part that was packed. y has tile_columns numbers a token, of which those beyond become arbitrary.
  void (*add)(const Weight& weight, const Part& part, const uint8_t* tile, const RoundedValues* rounded, size_t tokens,
              float* y, Prefetch& next);
};

// Indexed, as its parts are, by WeightType less kUInt8.
struct IntegerKernels {
  // What add_rows of ProductKernels does, with the rows of one block of channels of one token: add.count <=
  // kBlockChannels. Its integers are the same in every instruction set.
  void (*add_rows[kCodeTypes])(const Weight& weight, size_t first_column, const Rows& add, const Rows& next,
                               size_t columns, float* y);

  // The same as float32: where the values cannot be rounded.
  void (*add_unrounded[kCodeTypes])(const Weight& weight, size_t first_column, const Rows& add, size_t columns,
                                    float* y);

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
