// What every processor can run.
#include "isa/portable/vector.h"
#include "isa/tables.h"
#include "product/int8_kernels_impl.h"
#include "product/product_kernels_impl.h"
#include "selection/selection_kernels_impl.h"

namespace nm_export {

const SelectionKernels kPortableSelection = selection_kernels<PortableVector>();
const ProductKernels kPortableProducts = product_kernels<PortableVector>();
const Int8Kernels kPortableInt8 = int8_kernels<PortableVector>(nullptr);

}  // namespace nm_export
