// ai.nm_export::NMTopK, version 1, as ONNX Runtime sees it. Specified in docs/semantics.md.
#pragma once

#include "ort_c_api.h"

namespace nm_export {

// ONNX Runtime passes the operator back to every function but hands no API to shape inference, so it carries one.
struct NMTopKOp : ort::CustomOp {
  const ort::Api* api;
  ort::ElementType element_type;
};

// The operator for x of one element type: kFloat, kFloat16 or kBFloat16. `api` outlives it.
NMTopKOp make_nm_topk_op(const ort::Api* api, ort::ElementType element_type);

}  // namespace nm_export
