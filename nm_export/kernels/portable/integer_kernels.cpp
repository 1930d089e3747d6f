// Also for aarch64: its instructions for products of bytes are not on every such processor.
#include "integer_kernels_impl.h"
#include "portable/widen_half.h"

namespace nm_export {
namespace {

struct Numbers {
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return widen_half(source->bits); }
  static void prefetch(const void* at) {
#ifdef __GNUC__
    __builtin_prefetch(at);
#else
    static_cast<void>(at);
#endif
  }
};

template <size_t kBits>
using Dots = PlainDots<Numbers, kBits>;

}  // namespace

const IntegerKernels kPortableIntegers = integer_kernels<Dots>(nullptr);

}  // namespace nm_export
