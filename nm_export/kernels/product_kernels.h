// The inner loops of a product with a pruned input, implemented once for every instruction set.
//
// As row_kernels.h says, the files of an instruction set use no inline function of the C++ library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nm_export {

// How a weight is stored. Sums are float32 whatever it is. The integers are codes of a quantized weight.
enum class WeightType { kFloat32, kFloat16, kBFloat16, kUInt8, kUInt4 };
constexpr int kFloatTypes = 3;
constexpr int kWeightTypes = 5;

// A weight of [channels, columns]. It needs no alignment beyond that of its type.
struct Weight {
  WeightType type;
  const void* data;  // two numbers of 4 bits share a byte, the first has the low bits; then `columns` is even
  size_t columns;

  // Of codes, which stand for (code - zero point) * scale, with one scale and one zero point for `block_size` channels
  // of a column.
  const void* scales;       // [blocks, columns], float32 or float16
  const void* zero_points;  // the same; null where all are `zero_point`
  float zero_point;
  bool half_scales;   // scales and zero points are float16
  size_t block_size;  // a power of two, kSmallestBlock or more
};
constexpr size_t kSmallestBlock = 16;

// Channels are taken in blocks, one for every bit of a mask.
constexpr size_t kBlockChannels = 64;

// Rows of a weight that a token adds, or that are needed next: their numbers, and what they are multiplied by.
struct Rows {
  const uint32_t* row;
  const float* value;
  size_t count;
};

// Rows and columns of a weight. The first column is a multiple of 64.
struct Part {
  size_t first_row;
  size_t rows;
  size_t first_column;
  size_t columns;
};

// The channels of some tokens in one block, packed one token after the other.
struct BlockInput {
  const float* x;         // [tokens, kBlockChannels]
  const uint64_t* masks;  // bit k: channel k of the token is not zero
  size_t tokens;
  size_t channels;
};

// Cache lines that are needed next, asked for a few at a time: `rows` rows of `row_lines` lines, `stride` bytes apart.
struct Prefetch {
  const char* at;
  size_t stride;
  size_t row_lines;
  size_t rows;
  size_t line;  // of the row at `at`
  size_t lines_per_step;
};

// So many rows are packed to a tile in about the time that a token takes for the tile: a step each.
constexpr size_t kPackedRowsPerStep = 4;

struct ProductKernels {
  // The channels of v that are not zero (a NaN is not), in ascending order: their numbers, counted from `first`, and
  // what they hold. Both targets have room for `channels` <= kBlockChannels numbers. Returns them as a mask too.
  uint64_t (*compact)(const float* v, size_t channels, size_t first, uint32_t* row, float* value);

  // y[c] += sum over i of add.value[i] * W[add.row[i], c], for c < columns, while the rows `next` are prefetched;
  // next.count <= kBlockChannels, next.value is not used. W[., 0] is the weight's column `first_column`. Rows of codes
  // are of one block of channels. Indexed by WeightType.
  void (*add_rows[kWeightTypes])(const Weight& weight, size_t first_column, const Rows& add, const Rows& next,
                                 size_t columns, float* y);

  // For so many tokens add_shared_rows loads a row once.
  size_t shared_tokens;

  // y[t, c] += sum over the rows r of `add`, of one block of channels, of x[t, r % kBlockChannels] * W[r, c], for all
  // tokens of `input`, whose masks are not used; y has the columns of the weight. The rest is that of add_rows, and
  // add.value is not used either. Indexed by WeightType.
  void (*add_shared_rows[kFloatTypes])(const Weight& weight, size_t first_column, const Rows& add,
                                       const BlockInput& input, const Rows& next, size_t columns, float* y);

  // A tile holds the weights of a block of channels in so many columns, as float32, one row after the other.
  size_t tile_columns;

  // Packs a part of a weight to a tile. What the tile has more is left as it is. Indexed by WeightType.
  void (*pack_tile[kWeightTypes])(const Weight& weight, const Part& part, float* tile, Prefetch& next);

  // Packs `channels` <= kBlockChannels channels of a token for BlockInput, and returns their mask.
  uint64_t (*pack_channels)(const float* v, size_t channels, float* x);

  // y[t, c] += sum over the bits k of masks[t] of x[t, k] * tile[k, c], for c < columns <= tile_columns; y has
  // tile_columns numbers a token, of which those beyond `columns` become arbitrary.
  void (*add_tile)(const float* tile, const BlockInput& input, size_t columns, float* y, Prefetch& next);

  // The same, and to the bit where weights are finite, by multiplying zeros too.
  void (*add_dense_tile)(const float* tile, const BlockInput& input, size_t columns, float* y, Prefetch& next);
};

extern const ProductKernels kPortableProducts;
#ifdef NM_EXPORT_X86_64
extern const ProductKernels kAvx2Products;
extern const ProductKernels kAvx512Products;
#endif
#ifdef NM_EXPORT_AARCH64
extern const ProductKernels kNeonProducts;
#endif

}  // namespace nm_export
