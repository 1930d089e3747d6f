// ai.nm_export::NMTopK, version 1, as ONNX Runtime sees it. Specified in docs/semantics.md.
#pragma once

#include "operators/operator_table.h"

namespace nm_export {

// The operator for x of one element type: kFloat, kFloat16 or kBFloat16. `api` outlives it.
Operator make_nm_topk_op(const ort::Api* api, ort::ElementType element_type);

}  // namespace nm_export
