#include "sparse_matmul_nbits_op.h"

#include <string>
#include <utility>

#include "portable/widen_half.h"
#include "product_call.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* kName = "NMSparseMatMulNBits";
enum Input : size_t { kScales = 2, kZeroPoints = 3, kBias = 4 };
constexpr int64_t kLargestBlock = 256;

struct Kernel {
  ProductNode node;
  WeightType type;
  bool half_scales;
  int64_t block_size;
  bool may_round;  // of SparseProduct
};

int64_t block_size_of(const Api& api, const ort::KernelInfo* info, const std::string& node) {
  const int64_t size = int_attribute(api, info, node, "block_size", kSmallestBlock, kLargestBlock);
  if ((size & (size - 1)) != 0) {
    fail(api, ort::kInvalidArgument,
         node + ": the attribute block_size is " + std::to_string(size) + "; it must be a power of two");
  }
  return size;
}

// Left out, it is 0. Levels that ask for more than 8 bits get float32.
bool may_round(const Api& api, const ort::KernelInfo* info, const std::string& node) {
  constexpr const char* kAttribute = "accuracy_level";
  constexpr int64_t kEightBits = 4;
  int64_t level = 0;
  if (Status* missing = api.KernelInfoGetAttribute_int64(info, kAttribute, &level)) {
    api.ReleaseStatus(missing);
    return false;
  }
  return int_attribute(api, info, node, kAttribute, 0, kEightBits) == kEightBits;
}

// The data of an input that must have one number for each block of the weight.
const void* block_input(const Kernel& kernel, const ort::KernelContext* context, size_t index, const char* name,
                        const Shape& expected, const char* or_else) {
  const Api& api = *kernel.node.api;
  const Shape shape = kernel.node.inputs.shape(context, index);
  if (shape != expected) {
    fail(api, ort::kInvalidArgument,
         kernel.node.name + ": " + name + " has shape " + shape_text(shape) + "; weight has O = " +
             std::to_string(expected[1]) + " columns and blocks of " + std::to_string(kernel.block_size) +
             " rows, so it must be " + shape_text(expected) + or_else);
  }
  return data_of<const void>(api, kernel.node.inputs.value(context, index));
}

float one_number(const void* stored, bool is_half) {
  if (is_half) return widen_half(*static_cast<const uint16_t*>(stored));
  return *static_cast<const float*>(stored);
}

void compute(const Kernel& kernel, ort::KernelContext* context) {
  const ProductShapes shapes = product_shapes(kernel.node, context);
  const Api& api = *kernel.node.api;
  const int64_t columns = shapes.weight[1];
  if (kernel.type == WeightType::kUInt4 && columns % 2 != 0) {
    fail(api, ort::kInvalidArgument,
         kernel.node.name + ": weight has O = " + std::to_string(columns) +
             " columns of 4 bits; O must be even, so that every row begins at a byte");
  }
  const Shape per_block = {(shapes.weight[0] + kernel.block_size - 1) / kernel.block_size, columns};
  Weight weight{};
  weight.type = kernel.type;
  weight.data = data_of<const void>(api, kernel.node.inputs.value(context, kWeightInput));
  weight.columns = static_cast<size_t>(columns);
  weight.half_scales = kernel.half_scales;
  weight.block_size = static_cast<size_t>(kernel.block_size);
  weight.scales = block_input(kernel, context, kScales, "scales", per_block, "");
  if (kernel.node.inputs.shape(context, kZeroPoints) == Shape{1}) {
    const ort::Value* zero_point = kernel.node.inputs.value(context, kZeroPoints);
    weight.zero_point = one_number(data_of<const void>(api, zero_point), kernel.half_scales);
  } else {
    weight.zero_points = block_input(kernel, context, kZeroPoints, "zero_points", per_block, " or [1]");
  }
  multiply(kernel.node, context, shapes, weight, kBias, kernel.may_round);
}

Status* create_kernel(const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info, void** kernel) {
  const Operator& self = operator_of(op);
  const Api& api = *self.api;
  return guarded(api, kName, [&] {
    ProductNode node = make_product_node(self, info);
    const WeightType type = self.inputs[kWeightInput] == ort::kUInt8 ? WeightType::kUInt8 : WeightType::kUInt4;
    const bool half_scales = self.inputs[kScales] == ort::kFloat16;
    const std::string name = node.name;
    const int64_t block_size = block_size_of(api, info, name);
    *kernel = new Kernel{std::move(node), type, half_scales, block_size, may_round(api, info, name)};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.node.api, kName, [&] { compute(kernel, context); });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

}  // namespace

Operator make_nm_sparse_matmul_nbits_op(const Api* api, ort::ElementType value_type, ort::ElementType code_type,
                                        ort::ElementType scale_type) {
  return make_operator(api, kName, {value_type, code_type, scale_type, scale_type, ort::kFloat, ort::kFloat, ort::kFloat},
                       {value_type}, {create_kernel, compute_kernel, destroy_kernel, infer_product_shape});
}

}  // namespace nm_export
