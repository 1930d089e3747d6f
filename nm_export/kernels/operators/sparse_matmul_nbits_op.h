// ai.nm_export::NMSparseMatMulNBits, version 1, as ONNX Runtime sees it. Specified in docs/semantics.md.
#pragma once

#include "operators/operator_table.h"

namespace nm_export {

// The operator for one element type of values (kFloat, kFloat16, kBFloat16), one of codes (kUInt8, kUInt4) and one of
// scales and zero points (kFloat, kFloat16). `api` outlives it.
Operator make_nm_sparse_matmul_nbits_op(const ort::Api* api, ort::ElementType value_type, ort::ElementType code_type,
                                        ort::ElementType scale_type);

}  // namespace nm_export
