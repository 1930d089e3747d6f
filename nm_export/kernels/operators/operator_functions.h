// The functions by which ONNX Runtime makes, runs and frees the kernel of a node, for any class of kernel.
#pragma once

#include "operators/operator_support.h"
#include "operators/operator_table.h"

namespace nm_export {

// Kernel has
//
//   kName                                          of the operator, for messages
//   Kernel(const Operator&, const ort::KernelInfo*)   for a node, when a model is opened; throws Failure where it is
//   refused compute(ort::KernelContext*)                   one call; from several threads at once api() that of its
//   Operator
//
// Whatever these throw becomes a status.
template <class Kernel>
OperatorFunctions operator_functions(decltype(OperatorFunctions::infer_shapes) infer_shapes) {
  OperatorFunctions functions{};
  functions.create_kernel = [](const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info,
                               void** kernel) {
    const Operator& self = operator_of(op);
    return guarded(*self.api, Kernel::kName, [&] { *kernel = new Kernel(self, info); });
  };
  functions.compute = [](void* state, ort::KernelContext* context) {
    Kernel& kernel = *static_cast<Kernel*>(state);
    return guarded(kernel.api(), Kernel::kName, [&] { kernel.compute(context); });
  };
  functions.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  functions.infer_shapes = infer_shapes;
  return functions;
}

}  // namespace nm_export
