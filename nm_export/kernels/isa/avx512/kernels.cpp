// AVX-512 F, BW and DQ. Tiles of 64 x 128 weights fill two thirds of a first-level cache of 48 KiB.
#include "isa/avx512/int8_quantizer.h"
#include "isa/avx512/lookup_adder.h"
#include "isa/avx512/vector.h"
#include "isa/tables.h"
#include "product/int8_kernels_impl.h"
#include "product/product_kernels_impl.h"
#include "selection/selection_kernels_impl.h"

namespace nm_export {

const SelectionKernels kAvx512Selection = selection_kernels<Avx512Vector>();
const ProductKernels kAvx512Products = product_kernels<Avx512Vector, Avx512Adders>();
const Int8Kernels kAvx512Int8 = int8_kernels<VectorInt8<Avx512Vector, Avx512Quantizer>>(nullptr);

}  // namespace nm_export
