// AVX-512 F, BW and DQ. Tiles of 64 x 128 weights fill two thirds of a first-level cache of 48 KiB.
#include "isa/avx512/vector.h"
#include "isa/tables.h"
#include "product/int8_kernels_impl.h"
#include "product/product_kernels_impl.h"
#include "selection/selection_kernels_impl.h"

namespace nm_export {

const SelectionKernels kAvx512Selection = selection_kernels<Avx512Vector>();
const ProductKernels kAvx512Products = product_kernels<Avx512Vector>();
const Int8Kernels kAvx512Int8 = int8_kernels<Avx512Vector>(nullptr);

}  // namespace nm_export
