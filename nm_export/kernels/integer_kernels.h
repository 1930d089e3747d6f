// The inner loops of a product of codes with values that are rounded to 8 bits: docs/semantics.md, accuracy level 4.
//
// As row_kernels.h says, the files of an instruction set use no inline function of the C++ library.
#pragma once

#include "product_kernels.h"

namespace nm_export {

struct IntegerKernels {
  // What add_rows of ProductKernels does, with the rows of one block of channels of one token: add.count <=
  // kBlockChannels. Its integers are the same in every instruction set. Indexed by WeightType, less kInt8.
  void (*add_rows[4])(const Weight& weight, size_t first_column, const Rows& add, const Rows& next, size_t columns,
                      float* y);
};

extern const IntegerKernels kPortableIntegers;
#ifdef NM_EXPORT_X86_64
extern const IntegerKernels kAvx2Integers;
extern const IntegerKernels kAvx512Integers;
extern const IntegerKernels kAvx512VnniIntegers;
#endif

}  // namespace nm_export
