// AVX-512 VNNI, for int8 products only: the rest is AVX-512's.
#include "isa/avx512vnni/packed_int8_impl.h"
#include "isa/avx512vnni/vector.h"
#include "isa/tables.h"
#include "product/int8_kernels_impl.h"

namespace nm_export {

const Int8Kernels kAvx512VnniInt8 = int8_kernels<Avx512VnniVector>(&kPackedInt8);

}  // namespace nm_export
