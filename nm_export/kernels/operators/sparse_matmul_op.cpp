#include "operators/sparse_matmul_op.h"

#include "operators/operator_functions.h"
#include "operators/product_op.h"

namespace nm_export {
namespace {

constexpr size_t kBiasInput = 2;

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

class Kernel {
 public:
  static constexpr const char* kName = "NMSparseMatMul";

  Kernel(const Operator& op, const ort::KernelInfo* info)
      : node_(op, info), weight_type_(weight_type_of(op.inputs[kWeightInput])) {}

  const ort::Api& api() const { return node_.api; }

  void compute(ort::KernelContext* context) {
    const ProductShapes shapes = product_shapes(node_, context);
    Weight weight{};
    weight.type = weight_type_;
    weight.data = data_of<const void>(node_.api, node_.inputs.value(context, kWeightInput));
    weight.outputs = static_cast<size_t>(shapes.weight[1]);
    multiply(node_, context, shapes, weight, kBiasInput, false);
  }

 private:
  ProductNode node_;
  const WeightType weight_type_;
};

}  // namespace

Operator make_nm_sparse_matmul_op(const ort::Api* api, ort::ElementType value_type, ort::ElementType weight_type) {
  return make_operator(api, Kernel::kName, {value_type, weight_type, ort::kFloat, ort::kFloat, ort::kFloat},
                       {value_type}, operator_functions<Kernel>(infer_product_shape));
}

}  // namespace nm_export
