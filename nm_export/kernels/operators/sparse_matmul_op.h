// ai.nm_export::NMSparseMatMul, version 1, as ONNX Runtime sees it. Specified in docs/semantics.md.
#pragma once

#include "operators/operator_table.h"

namespace nm_export {

// The operator for one pair of element types of kFloat, kFloat16 and kBFloat16. `api` outlives it.
Operator make_nm_sparse_matmul_op(const ort::Api* api, ort::ElementType value_type, ort::ElementType weight_type);

}  // namespace nm_export
