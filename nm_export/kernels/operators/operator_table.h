// How an operator describes itself to ONNX Runtime: the parts of the table that are the same for all of them.
#pragma once

#include <vector>

#include "operators/ort_c_api.h"

namespace nm_export {

// ONNX Runtime passes the operator back to every function but hands no API to shape inference, so it carries one.
struct Operator : ort::CustomOp {
  const ort::Api* api;
  const char* name;
  std::vector<ort::ElementType> inputs;
  std::vector<ort::ElementType> outputs;
};

inline const Operator& operator_of(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

// What computes it. The kernel is made for a node when a model is opened and given to every `compute` of that node.
struct OperatorFunctions {
  ort::Status* (*create_kernel)(const ort::CustomOp*, const ort::ApiTable*, const ort::KernelInfo*, void** kernel);
  ort::Status* (*compute)(void* kernel, ort::KernelContext*);
  void (*destroy_kernel)(void* kernel);
  ort::Status* (*infer_shapes)(const ort::CustomOp*, ort::ShapeInferContext*);
};

// An operator of the CPU whose inputs and outputs, one element type each, are all required. `api` and `name` outlive
// it.
Operator make_operator(const ort::Api* api, const char* name, std::vector<ort::ElementType> inputs,
                       std::vector<ort::ElementType> outputs, const OperatorFunctions& functions);

}  // namespace nm_export
