// Also for aarch64: its instructions for products of bytes are not on every such processor.
#include "integer_kernels_impl.h"

namespace nm_export {

const IntegerKernels kPortableIntegers = integer_kernels<PlainDots>(nullptr);

}  // namespace nm_export
