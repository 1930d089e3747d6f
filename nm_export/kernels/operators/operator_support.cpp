#include "operators/operator_support.h"

namespace nm_export {

using ort::Api;
using ort::Status;

void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

void fail(const Api& api, ort::ErrorCode code, const std::string& message) {
  throw Failure{api.CreateStatus(code, message.c_str())};
}

const InstructionSet& instruction_set_for(const Api& api, const std::string& node) {
  const InstructionSetChoice choice = choose_instruction_set();
  if (choice.set == nullptr) fail(api, ort::kInvalidArgument, node + ": " + choice.error);
  return *choice.set;
}

std::string node_name(const Api& api, const ort::KernelInfo* info, const char* op) {
  // The first call is refused for want of room and tells the size, which counts the terminating zero.
  size_t size = 0;
  if (Status* status = api.KernelInfo_GetNodeName(info, nullptr, &size)) api.ReleaseStatus(status);
  std::string name(size, '\0');
  if (size > 0) {
    check(api.KernelInfo_GetNodeName(info, name.data(), &size));
    name.resize(size - 1);
  }
  return std::string(op) + " node '" + name + "'";
}

int64_t int_attribute(const Api& api, const ort::KernelInfo* info, const std::string& node, const char* name,
                      int64_t smallest, int64_t largest, int64_t otherwise) {
  int64_t value = 0;
  if (Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
    api.ReleaseStatus(status);
    if (otherwise >= smallest && otherwise <= largest) return otherwise;
    fail(api, ort::kInvalidArgument, node + ": the integer attribute " + name + " is missing");
  }
  if (value < smallest || value > largest) {
    fail(api, ort::kInvalidArgument,
         node + ": the attribute " + name + " is " + std::to_string(value) + "; it must be from " +
             std::to_string(smallest) + " to " + std::to_string(largest));
  }
  return value;
}

Shape shape_of(const Api& api, const ort::Value* value, const std::string& node) {
  ort::TensorTypeAndShapeInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<ort::TensorTypeAndShapeInfo, void (*)(ort::TensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  if (rank > Shape::kMostAxes) {
    fail(api, ort::kNotImplemented,
         node + ": a tensor has " + std::to_string(rank) + " axes; it may have up to " +
             std::to_string(Shape::kMostAxes));
  }
  Shape shape;
  shape.rank_ = rank;
  if (rank > 0) check(api.GetDimensions(info, shape.sizes_, rank));
  return shape;
}

std::string shape_text(const Shape& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

NodeInputs::NodeInputs(const Api& api, const ort::KernelInfo* info, const std::string& node, size_t count)
    : api_(api), node_(node), constants_(count) {
  for (size_t index = 0; index < count; ++index) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
    if (is_constant != 0 && value != nullptr) constants_[index] = shape_of(api, value, node);
  }
}

Shape NodeInputs::shape(const ort::KernelContext* context, size_t index) const {
  return constants_[index].has_value() ? *constants_[index] : shape_of(api_, value(context, index), node_);
}

const ort::Value* NodeInputs::value(const ort::KernelContext* context, size_t index) const {
  const ort::Value* value = nullptr;
  check(api_.KernelContext_GetInput(context, index, &value));
  return value;
}

const float* NodeInputs::vector(const ort::KernelContext* context, size_t index, const char* name, int64_t size,
                                const char* owner, const char* unit) const {
  const Shape found = shape(context, index);
  if (found != Shape{size}) {
    fail(api_, ort::kInvalidArgument,
         node_ + ": " + name + " has shape " + shape_text(found) + "; " + owner + " = " + std::to_string(size) + " " +
             unit + ", so it must be [" + std::to_string(size) + "]");
  }
  return data_of<const float>(api_, value(context, index));
}

bool NamedShape::is_known() const {
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    const bool named = names[axis] != nullptr && names[axis][0] != '\0';
    if (sizes[axis] < 0 && !named) return false;
  }
  return !sizes.empty();
}

NamedShape shape_of_input(const Api& api, const ort::ShapeInferContext* context, size_t index) {
  ort::TensorTypeAndShapeInfo* info = nullptr;
  check(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  NamedShape shape{std::vector<int64_t>(rank), std::vector<const char*>(rank)};
  if (rank == 0) return shape;
  check(api.GetDimensions(info, shape.sizes.data(), rank));
  check(api.GetSymbolicDimensions(info, shape.names.data(), rank));
  return shape;
}

void set_shape_of_output(const Api& api, const ort::ShapeInferContext* context, size_t index, ort::ElementType type,
                         NamedShape shape) {
  ort::TensorTypeAndShapeInfo* info = nullptr;
  check(api.CreateTensorTypeAndShapeInfo(&info));
  const std::unique_ptr<ort::TensorTypeAndShapeInfo, void (*)(ort::TensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  check(api.SetTensorElementType(info, type));
  check(api.SetDimensions(info, shape.sizes.data(), shape.sizes.size()));
  check(api.SetSymbolicDimensions(info, shape.names.data(), shape.names.size()));
  check(api.ShapeInferContext_SetOutputTypeShape(context, index, info));
}

}  // namespace nm_export
