#include "operators/sparse_matmul_nbits_op.h"

#include <string>

#include "isa/portable/float16.h"
#include "operators/operator_functions.h"
#include "operators/product_op.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

enum Input : size_t { kScales = 2, kZeroPoints = 3, kBias = 4 };
constexpr int64_t kLargestBlock = 256;

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

float one_number(const void* stored, bool is_half) {
  if (is_half) return widened(*static_cast<const Float16*>(stored));
  return *static_cast<const float*>(stored);
}

class Kernel {
 public:
  static constexpr const char* kName = "NMSparseMatMulNBits";

  Kernel(const Operator& op, const ort::KernelInfo* info)
      : node_(op, info),
        type_(op.inputs[kWeightInput] == ort::kUInt8 ? WeightType::kUInt8 : WeightType::kUInt4),
        half_scales_(op.inputs[kScales] == ort::kFloat16),
        block_size_(block_size_of(node_.api, info, node_.name)),
        int8_activations_(has_int8_activations(node_.api, info, node_.name)) {}

  const ort::Api& api() const { return node_.api; }

  void compute(ort::KernelContext* context) {
    const ProductShapes shapes = product_shapes(node_, context);
    const int64_t outputs = shapes.weight[1];
    if (type_ == WeightType::kUInt4 && outputs % 2 != 0) {
      fail(node_.api, ort::kInvalidArgument,
           node_.name + ": weight has O = " + std::to_string(outputs) +
               " columns of 4 bits; O must be even, so that every row begins at a byte");
    }
    const Shape per_block = {(shapes.weight[0] + block_size_ - 1) / block_size_, outputs};
    Weight weight{};
    weight.type = type_;
    weight.data = data_of<const void>(node_.api, node_.inputs.value(context, kWeightInput));
    weight.outputs = static_cast<size_t>(outputs);
    weight.half_scales = half_scales_;
    weight.block_size = static_cast<size_t>(block_size_);
    weight.scales = block_input(context, kScales, "scales", per_block, "");
    if (node_.inputs.shape(context, kZeroPoints) == Shape{1}) {
      const ort::Value* zero_point = node_.inputs.value(context, kZeroPoints);
      weight.zero_point = one_number(data_of<const void>(node_.api, zero_point), half_scales_);
    } else {
      weight.zero_points = block_input(context, kZeroPoints, "zero_points", per_block, " or [1]");
    }
    multiply(node_, context, shapes, weight, kBias, int8_activations_);
  }

 private:
  // The data of an input that must have one number for each block of the weight.
  const void* block_input(const ort::KernelContext* context, size_t index, const char* name, const Shape& expected,
                          const char* or_else) const {
    const Shape shape = node_.inputs.shape(context, index);
    if (shape != expected) {
      fail(node_.api, ort::kInvalidArgument,
           node_.name + ": " + name + " has shape " + shape_text(shape) +
               "; weight has O = " + std::to_string(expected[1]) + " columns and blocks of " +
               std::to_string(block_size_) + " rows, so it must be " + shape_text(expected) + or_else);
    }
    return data_of<const void>(node_.api, node_.inputs.value(context, index));
  }

  ProductNode node_;
  const WeightType type_;
  const bool half_scales_;
  const int64_t block_size_;
  const bool int8_activations_;  // of SparseProduct
};

}  // namespace

Operator make_nm_sparse_matmul_nbits_op(const Api* api, ort::ElementType value_type, ort::ElementType integer_type,
                                        ort::ElementType scale_type) {
  return make_operator(api, Kernel::kName,
                       {value_type, integer_type, scale_type, scale_type, ort::kFloat, ort::kFloat, ort::kFloat},
                       {value_type}, operator_functions<Kernel>(infer_product_shape));
}

}  // namespace nm_export
