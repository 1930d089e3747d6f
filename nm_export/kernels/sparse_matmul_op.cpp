#include "sparse_matmul_op.h"

#include "product_call.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* kName = "NMSparseMatMul";
constexpr size_t kBiasInput = 2;

struct Kernel {
  ProductNode node;
  WeightType weight_type;
};

WeightType weight_type_of(ort::ElementType type) {
  switch (type) {
    case ort::kFloat16:
      return WeightType::kFloat16;
    case ort::kBFloat16:
      return WeightType::kBFloat16;
    default:
      return WeightType::kFloat32;
  }
}

void compute(const Kernel& kernel, ort::KernelContext* context) {
  const ProductShapes shapes = product_shapes(kernel.node, context);
  const Api& api = *kernel.node.api;
  Weight weight{};
  weight.type = kernel.weight_type;
  weight.data = data_of<const void>(api, kernel.node.inputs.value(context, kWeightInput));
  weight.columns = static_cast<size_t>(shapes.weight[1]);
  multiply(kernel.node, context, shapes, weight, kBiasInput, false);
}

Status* create_kernel(const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info, void** kernel) {
  const Operator& self = operator_of(op);
  return guarded(*self.api, kName, [&] {
    *kernel = new Kernel{make_product_node(self, info), weight_type_of(self.inputs[kWeightInput])};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.node.api, kName, [&] { compute(kernel, context); });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

}  // namespace

Operator make_nm_sparse_matmul_op(const Api* api, ort::ElementType value_type, ort::ElementType weight_type) {
  return make_operator(api, kName, {value_type, weight_type, ort::kFloat, ort::kFloat, ort::kFloat}, {value_type},
                       {create_kernel, compute_kernel, destroy_kernel, infer_product_shape});
}

}  // namespace nm_export
