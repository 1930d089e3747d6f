#include "operators/sparse_matmul_nbits_op.h"

#include <algorithm>
#include <string>

#include "operators/operator_functions.h"
#include "operators/product_op.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

enum Input : size_t { kScales = 2, kZeroPoints = 3, kBias = 4 };
constexpr int64_t kLargestBlock = 256;

WeightType weight_type_of(ort::ElementType type) {
  switch (type) {
    case ort::kInt8:
      return WeightType::kInt8;
    case ort::kUInt8:
      return WeightType::kUInt8;
    case ort::kInt4:
      return WeightType::kInt4;
    default:
      return WeightType::kUInt4;
  }
}

bool has_4_bits(WeightType type) { return type == WeightType::kInt4 || type == WeightType::kUInt4; }

int64_t block_size_of(const Api& api, const ort::KernelInfo* info, const std::string& node) {
  const int64_t size = int_attribute(api, info, node, "block_size", kSmallestBlock, kLargestBlock);
  if ((size & (size - 1)) != 0) {
    fail(api, ort::kInvalidArgument,
         node + ": the attribute block_size is " + std::to_string(size) + "; it must be a power of two");
  }
  return size;
}

// Left out, it is 0. Levels that ask for more than 8 bits get float32.
bool has_int8_activations(const Api& api, const ort::KernelInfo* info, const std::string& node) {
  constexpr const char* kAttribute = "accuracy_level";
  constexpr int64_t kEightBits = 4;
  int64_t level = 0;
  if (Status* missing = api.KernelInfoGetAttribute_int64(info, kAttribute, &level)) {
    api.ReleaseStatus(missing);
    return false;
  }
  return int_attribute(api, info, node, kAttribute, 0, kEightBits) == kEightBits;
}

// Whether all zero points are known to be 0. The unused half of the last byte counts too: ONNX says that it is 0.
bool has_constant_zeros(const Api& api, const ort::KernelInfo* info, const std::string& node, WeightType type) {
  int is_constant = 0;
  const ort::Value* zero_points = nullptr;
  check(api.KernelInfoGetConstantInput_tensor(info, kZeroPoints, &is_constant, &zero_points));
  if (is_constant == 0 || zero_points == nullptr) return false;
  size_t count = 1;
  for (const int64_t size : shape_of(api, zero_points, node)) count *= static_cast<size_t>(size);
  const auto* bytes = data_of<const uint8_t>(api, zero_points);
  const size_t size = has_4_bits(type) ? (count + 1) / 2 : count;
  return std::all_of(bytes, bytes + size, [](uint8_t byte) { return byte == 0; });
}

class Kernel {
 public:
  static constexpr const char* kName = "NMSparseMatMulNBits";

  Kernel(const Operator& op, const ort::KernelInfo* info)
      : node_(op, info),
        type_(weight_type_of(op.inputs[kWeightInput])),
        symmetric_(has_constant_zeros(node_.api, info, node_.name, type_)),
        block_size_(block_size_of(node_.api, info, node_.name)),
        int8_activations_(has_int8_activations(node_.api, info, node_.name)) {}

  const ort::Api& api() const { return node_.api; }

  void compute(ort::KernelContext* context) {
    const ProductShapes shapes = product_shapes(node_, context);
    const int64_t outputs = shapes.weight[1];
    if (has_4_bits(type_) && outputs % 2 != 0) {
      fail(node_.api, ort::kInvalidArgument,
           node_.name + ": weight has O = " + std::to_string(outputs) +
               " columns of 4 bits; O must be even, so that every row begins at a byte");
    }
    const int64_t blocks = (outputs + block_size_ - 1) / block_size_;
    const Shape per_block = {shapes.weight[0], blocks};
    Weight weight{};
    weight.type = type_;
    weight.data = data_of<const void>(node_.api, node_.inputs.value(context, kWeightInput));
    weight.outputs = static_cast<size_t>(outputs);
    weight.scales = static_cast<const float*>(block_input(context, kScales, "scales", per_block));
    weight.zero_points = block_input(context, kZeroPoints, "zero_points", per_block);
    if (symmetric_) weight.zero_points = nullptr;
    weight.block_size = static_cast<size_t>(block_size_);
    weight.blocks = static_cast<size_t>(blocks);
    multiply(node_, context, shapes, weight, kBias, int8_activations_);
  }

 private:
  // The data of an input that must have one number for each block of the weight.
  const void* block_input(const ort::KernelContext* context, size_t index, const char* name,
                          const Shape& expected) const {
    const Shape shape = node_.inputs.shape(context, index);
    if (shape != expected) {
      fail(node_.api, ort::kInvalidArgument,
           node_.name + ": " + name + " has shape " + shape_text(shape) +
               "; weight has K = " + std::to_string(expected[0]) + " rows and blocks of " +
               std::to_string(block_size_) + " columns, so it must be " + shape_text(expected));
    }
    return data_of<const void>(node_.api, node_.inputs.value(context, index));
  }

  ProductNode node_;
  const WeightType type_;
  const bool symmetric_;  // zero points are constants of the model, and all 0
  const int64_t block_size_;
  const bool int8_activations_;  // of SparseProduct
};

}  // namespace

Operator make_nm_sparse_matmul_nbits_op(const Api* api, ort::ElementType value_type, ort::ElementType weight_type) {
  return make_operator(api, Kernel::kName,
                       {value_type, weight_type, ort::kFloat, weight_type, ort::kFloat, ort::kFloat, ort::kFloat},
                       {value_type}, operator_functions<Kernel>(infer_product_shape));
}

}  // namespace nm_export
