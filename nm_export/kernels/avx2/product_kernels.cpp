// Tiles of 64 x 64 weights, which fill half of a first-level cache of 32 KiB.
#include "avx2/product_lanes.h"

namespace nm_export {

const ProductKernels kAvx2Products = product_kernels<Avx2Products>();

}  // namespace nm_export
