#include "sparse_matmul_nbits_op.h"

#include <algorithm>
#include <string>
#include <utility>

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
  int64_t block_size;
  bool symmetric;  // zero points are constants of the model, and all 0
  bool may_round;  // of SparseProduct
};

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

// The unused half of the last byte counts too: ONNX says that it is 0.
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

// The data of an input that must have one number for each block of the weight.
const void* block_input(const Kernel& kernel, const ort::KernelContext* context, size_t index, const char* name,
                        const Shape& expected) {
  const Api& api = *kernel.node.api;
  const Shape shape = kernel.node.inputs.shape(context, index);
  if (shape != expected) {
    fail(api, ort::kInvalidArgument,
         kernel.node.name + ": " + name + " has shape " + shape_text(shape) + "; weight has K = " +
             std::to_string(expected[0]) + " rows and blocks of " + std::to_string(kernel.block_size) +
             " columns, so it must be " + shape_text(expected));
  }
  return data_of<const void>(api, kernel.node.inputs.value(context, index));
}

void compute(const Kernel& kernel, ort::KernelContext* context) {
  const ProductShapes shapes = product_shapes(kernel.node, context);
  const Api& api = *kernel.node.api;
  const int64_t columns = shapes.weight[1];
  if (has_4_bits(kernel.type) && columns % 2 != 0) {
    fail(api, ort::kInvalidArgument,
         kernel.node.name + ": weight has O = " + std::to_string(columns) +
             " columns of 4 bits; O must be even, so that every row begins at a byte");
  }
  const int64_t blocks = (columns + kernel.block_size - 1) / kernel.block_size;
  const Shape per_block = {shapes.weight[0], blocks};
  Weight weight{};
  weight.type = kernel.type;
  weight.data = data_of<const void>(api, kernel.node.inputs.value(context, kWeightInput));
  weight.columns = static_cast<size_t>(columns);
  weight.scales = static_cast<const float*>(block_input(kernel, context, kScales, "scales", per_block));
  weight.zero_points = block_input(kernel, context, kZeroPoints, "zero_points", per_block);
  if (kernel.symmetric) weight.zero_points = nullptr;
  weight.block_size = static_cast<size_t>(kernel.block_size);
  weight.blocks = static_cast<size_t>(blocks);
  multiply(kernel.node, context, shapes, weight, kBias, kernel.may_round);
}

Status* create_kernel(const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info, void** kernel) {
  const Operator& self = operator_of(op);
  const Api& api = *self.api;
  return guarded(api, kName, [&] {
    ProductNode node = make_product_node(self, info);
    const WeightType type = weight_type_of(self.inputs[kWeightInput]);
    const std::string name = node.name;
    const bool symmetric = has_constant_zeros(api, info, name, type);
    *kernel = new Kernel{std::move(node), type, block_size_of(api, info, name), symmetric, may_round(api, info, name)};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.node.api, kName, [&] { compute(kernel, context); });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

}  // namespace

Operator make_nm_sparse_matmul_nbits_op(const Api* api, ort::ElementType value_type, ort::ElementType code_type) {
  return make_operator(api, kName,
                       {value_type, code_type, ort::kFloat, code_type, ort::kFloat, ort::kFloat, ort::kFloat},
                       {value_type}, {create_kernel, compute_kernel, destroy_kernel, infer_product_shape});
}

}  // namespace nm_export
