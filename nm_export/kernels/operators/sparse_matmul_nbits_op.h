// ai.nm_export::NMSparseMatMulNBits, version 1, as ONNX Runtime sees it. Specified in docs/semantics.md.
#pragma once

#include "operators/operator_table.h"

namespace nm_export {

// The operator for one element type of values (kFloat, kFloat16, kBFloat16) and one of weights (kInt8, kUInt8, kInt4,
// kUInt4). `api` outlives it.
Operator make_nm_sparse_matmul_nbits_op(const ort::Api* api, ort::ElementType value_type, ort::ElementType weight_type);

}  // namespace nm_export
