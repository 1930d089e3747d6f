#include "operators/operator_table.h"

#include <utility>

namespace nm_export {

Operator make_operator(const ort::Api* api, const char* name, std::vector<ort::ElementType> inputs,
                       std::vector<ort::ElementType> outputs, const OperatorFunctions& functions) {
  using ort::CustomOp;
  Operator op{};
  op.version = ort::kCustomOpVersion;
  op.GetName = [](const CustomOp* self) { return operator_of(self).name; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* self, size_t index) { return operator_of(self).inputs[index]; };
  op.GetInputTypeCount = [](const CustomOp* self) { return operator_of(self).inputs.size(); };
  op.GetOutputType = [](const CustomOp* self, size_t index) { return operator_of(self).outputs[index]; };
  op.GetOutputTypeCount = [](const CustomOp* self) { return operator_of(self).outputs.size(); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t) { return ort::kInputRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return ort::kInputRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return ort::kMemoryDefault; };
  op.CreateKernelV2 = functions.create_kernel;
  op.KernelComputeV2 = functions.compute;
  op.KernelDestroy = functions.destroy_kernel;
  op.InferOutputShapeFn = functions.infer_shapes;
  op.api = api;
  op.name = name;
  op.inputs = std::move(inputs);
  op.outputs = std::move(outputs);
  return op;
}

}  // namespace nm_export
