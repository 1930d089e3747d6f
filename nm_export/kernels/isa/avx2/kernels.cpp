// AVX2, FMA and F16C. Tiles of 64 x 64 weights fill half of a first-level cache of 32 KiB.
#include "isa/avx2/vector.h"
#include "isa/tables.h"
#include "product/int8_kernels_impl.h"
#include "product/product_kernels_impl.h"
#include "selection/selection_kernels_impl.h"

namespace nm_export {

const SelectionKernels kAvx2Selection = selection_kernels<Avx2Vector>();
const ProductKernels kAvx2Products = product_kernels<Avx2Vector>();
const Int8Kernels kAvx2Int8 = int8_kernels<Avx2Vector>(nullptr);

}  // namespace nm_export
