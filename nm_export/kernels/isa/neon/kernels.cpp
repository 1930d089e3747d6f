// NEON of aarch64. Products go by pairs of vectors, so that a token has 16 sums of its own in the 32 registers, as many
// as several multiply-add units need to stay busy; tiles of 64 x 64 weights fill half of a first-level cache of 32 KiB.
// Products of bytes are portable: their instructions are not on every such processor.
#include "isa/neon/vector.h"
#include "isa/paired_vector.h"
#include "isa/tables.h"
#include "product/product_kernels_impl.h"
#include "selection/selection_kernels_impl.h"

namespace nm_export {

const SelectionKernels kNeonSelection = selection_kernels<NeonVector>();
const ProductKernels kNeonProducts = product_kernels<PairedVector<NeonVector>>();

}  // namespace nm_export
