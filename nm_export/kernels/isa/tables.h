// The tables of kernels that the instruction sets export: each isa/<name>/kernels.cpp defines its own. One that has
// nothing better for a family uses another one's table; see instruction_set.cpp.
#pragma once

#include "product/int8_kernels.h"
#include "product/product_kernels.h"
#include "selection/selection_kernels.h"

namespace nm_export {

extern const SelectionKernels kPortableSelection;
extern const ProductKernels kPortableProducts;
extern const Int8Kernels kPortableInt8;

#ifdef NM_EXPORT_X86_64
extern const SelectionKernels kAvx2Selection;
extern const ProductKernels kAvx2Products;
extern const Int8Kernels kAvx2Int8;

extern const SelectionKernels kAvx512Selection;
extern const ProductKernels kAvx512Products;
extern const Int8Kernels kAvx512Int8;

extern const Int8Kernels kAvx512VnniInt8;
#endif

#ifdef NM_EXPORT_AARCH64
extern const SelectionKernels kNeonSelection;
extern const ProductKernels kNeonProducts;
#endif

}  // namespace nm_export
