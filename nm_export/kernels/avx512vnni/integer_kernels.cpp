// AVX-512 VNNI: one instruction for products of four bytes and their sum.
#include "avx512/integer_dots.h"
#include "avx512vnni/integer_tiles.h"

namespace nm_export {
namespace {

struct Vnni {
  template <size_t>
  static __m512i add(__m512i sums, __m512i codes, __m512i values) {
    return _mm512_dpbusd_epi32(sums, codes, values);
  }
};

template <size_t kBits, bool kSigned>
using Dots = Avx512Dots<Vnni, kBits, kSigned>;

constexpr IntegerTileKernels kTiles = {
    kIntegerTileColumns,
    {pack_integer_tile<8, true>, pack_integer_tile<8, false>, pack_integer_tile<4, true>, pack_integer_tile<4, false>},
    {pack_block_scales<8, true>, pack_block_scales<8, false>, pack_block_scales<4, true>, pack_block_scales<4, false>},
    round_for_tiles,
    add_integer_tile};

}  // namespace

const IntegerKernels kAvx512VnniIntegers = integer_kernels<Dots>(&kTiles);

}  // namespace nm_export
