// AVX-512 VNNI: one instruction for products of four bytes and their sum.
#include "avx512/integer_dots.h"
#include "avx512vnni/integer_tiles.h"

namespace nm_export {
namespace {

struct Vnni {
  template <size_t kBits>
  struct Sums {
    __m512i sum = _mm512_setzero_si512();

    void add(__m512i codes, __m512i values) { sum = _mm512_dpbusd_epi32(sum, codes, values); }
    __m512i codes() const { return sum; }
  };
};

// The bytes as they are hold 16 times the high halves and once the low ones: so that no byte need be shifted.
template <>
struct Vnni::Sums<4> {
  __m512i bytes = _mm512_setzero_si512();
  __m512i low_halves = _mm512_setzero_si512();

  void add(__m512i codes, __m512i values) {
    bytes = _mm512_dpbusd_epi32(bytes, codes, values);
    low_halves = _mm512_dpbusd_epi32(low_halves, _mm512_and_si512(codes, _mm512_set1_epi8(15)), values);
  }
  __m512i low() const { return low_halves; }
  __m512i high() const { return _mm512_srai_epi32(_mm512_sub_epi32(bytes, low_halves), 4); }
};

template <size_t kBits>
using Dots = Avx512Dots<Vnni, kBits>;

constexpr IntegerTileKernels kTiles = {
    kIntegerTileColumns, {pack_integer_tile<8>, pack_integer_tile<4>}, round_for_tiles, add_integer_tile};

}  // namespace

const IntegerKernels kAvx512VnniIntegers = integer_kernels<Dots>(&kTiles);

}  // namespace nm_export
