#include "runtime_stand_in.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "operators/operator_table.h"

extern "C" nm_export::ort::Status* RegisterCustomOps(nm_export::ort::SessionOptions*, const nm_export::ort::ApiBase*);

// The opaque types of the C API are whatever the runtime makes of them.
namespace nm_export::ort {
struct Status {
  std::string message;
};
struct Value {
  stand_in::Tensor* tensor;
};
struct TensorTypeAndShapeInfo {
  std::vector<int64_t> shape;
};
struct KernelInfo {
  std::map<std::string, int64_t> attributes;
};
struct KernelContext {
  std::vector<Value> inputs;
  std::vector<Value> outputs;
  std::vector<ElementType> output_types;
};
struct SessionOptions {
  std::vector<const CustomOp*> operators;
};
struct CustomOpDomain {
  std::vector<const CustomOp*> operators;
};
}  // namespace nm_export::ort

namespace nm_export::stand_in {
namespace {

using namespace ort;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
}

void check(Status* status) {
  if (status != nullptr) fail(status->message);
}

size_t element_bytes(ElementType type) { return type == kFloat ? 4 : type == kFloat16 || type == kBFloat16 ? 2 : 1; }

// Threads that are made for one call: nothing but what the operator does itself orders the parts.
Status* parallel_for(const KernelContext*, void (*run)(void*, size_t), size_t total, size_t, void* data) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < total; i = next++) run(data, i);
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 3 && i + 1 < total; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return nullptr;
}

Status* get_output(KernelContext* context, size_t index, const int64_t* shape, size_t rank, Value** value) {
  Tensor& tensor = *context->outputs[index].tensor;
  tensor.shape.assign(shape, shape + rank);
  size_t count = 1;
  for (const int64_t size : tensor.shape) count *= static_cast<size_t>(size);
  tensor.bytes.assign(count * element_bytes(context->output_types[index]), 0xcd);
  *value = &context->outputs[index];
  return nullptr;
}

Api make_api() {
  Api api{};
  api.CreateStatus = [](ErrorCode, const char* message) { return new Status{message}; };
  api.ReleaseStatus = [](Status* status) { delete status; };
  api.CreateCustomOpDomain = [](const char*, CustomOpDomain** domain) -> Status* {
    *domain = new CustomOpDomain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](CustomOpDomain* domain, const CustomOp* op) -> Status* {
    domain->operators.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](SessionOptions* options, CustomOpDomain* domain) -> Status* {
    options->operators = domain->operators;
    return nullptr;
  };
  api.GetTensorMutableData = [](Value* value, void** data) -> Status* {
    *data = value->tensor->bytes.data();
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const Value* value, TensorTypeAndShapeInfo** info) -> Status* {
    *info = new TensorTypeAndShapeInfo{value->tensor->shape};
    return nullptr;
  };
  api.GetDimensionsCount = [](const TensorTypeAndShapeInfo* info, size_t* count) -> Status* {
    *count = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const TensorTypeAndShapeInfo* info, int64_t* sizes, size_t count) -> Status* {
    std::memcpy(sizes, info->shape.data(), count * sizeof *sizes);
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](TensorTypeAndShapeInfo* info) { delete info; };
  api.KernelInfoGetAttribute_int64 = [](const KernelInfo* info, const char* name, int64_t* value) -> Status* {
    const auto found = info->attributes.find(name);
    if (found == info->attributes.end()) return new Status{std::string("no attribute ") + name};
    *value = found->second;
    return nullptr;
  };
  api.KernelInfo_GetNodeName = [](const KernelInfo*, char* name, size_t* size) -> Status* {
    if (name == nullptr) {
      *size = 5;
      return new Status{"no room"};
    }
    std::memcpy(name, "node", 5);
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const KernelInfo*, size_t, int* is_constant,
                                             const Value** value) -> Status* {
    *is_constant = 0;
    *value = nullptr;
    return nullptr;
  };
  api.KernelContext_GetInput = [](const KernelContext* context, size_t index, const Value** value) -> Status* {
    *value = &context->inputs[index];
    return nullptr;
  };
  api.KernelContext_GetOutput = get_output;
  api.KernelContext_ParallelFor = parallel_for;
  return api;
}

// The table by position, as ort_c_api.cpp reads it.
using AnyFunction = void (*)();

template <typename Function>
AnyFunction entry(Function function) {
  return reinterpret_cast<AnyFunction>(function);
}

const ApiTable* table() {
  static const std::vector<AnyFunction> entries = [] {
    const Api api = make_api();
    std::vector<AnyFunction> made(300);
    made[0] = entry(api.CreateStatus);
    made[26] = entry(api.CreateCustomOpDomain);
    made[27] = entry(api.CustomOpDomain_Add);
    made[28] = entry(api.AddCustomOpDomain);
    made[51] = entry(api.GetTensorMutableData);
    made[61] = entry(api.GetDimensionsCount);
    made[62] = entry(api.GetDimensions);
    made[65] = entry(api.GetTensorTypeAndShape);
    made[86] = entry(api.KernelInfoGetAttribute_int64);
    made[90] = entry(api.KernelContext_GetInput);
    made[91] = entry(api.KernelContext_GetOutput);
    made[93] = entry(api.ReleaseStatus);
    made[99] = entry(api.ReleaseTensorTypeAndShapeInfo);
    made[244] = entry(api.KernelInfo_GetNodeName);
    made[249] = entry(api.KernelInfoGetConstantInput_tensor);
    made[274] = entry(api.KernelContext_ParallelFor);
    return made;
  }();
  return reinterpret_cast<const ApiTable*>(entries.data());
}

}  // namespace

Node::Node(const char* name, ElementType first, ElementType second, std::map<std::string, int64_t> attributes)
    : op_(nullptr) {
  const ApiBase base{[](uint32_t) { return table(); }, [] { return "1.99.0"; }};
  SessionOptions options;
  check(RegisterCustomOps(&options, &base));
  for (const CustomOp* op : options.operators) {
    if (std::strcmp(op->GetName(op), name) != 0) continue;
    if (op_ == nullptr && op->GetInputType(op, 0) == first && op->GetInputType(op, 1) == second) op_ = op;
  }
  if (op_ == nullptr) fail(std::string("no operator ") + name);
  const KernelInfo info{std::move(attributes)};
  check(op_->CreateKernelV2(op_, table(), &info, &kernel_));
}

Node::~Node() { op_->KernelDestroy(kernel_); }

std::vector<Tensor> Node::run(const std::vector<Tensor>& inputs) const {
  KernelContext context;
  std::vector<Tensor> outputs(op_->GetOutputTypeCount(op_));
  // operators only read their inputs
  for (const Tensor& tensor : inputs) context.inputs.push_back({const_cast<Tensor*>(&tensor)});
  for (size_t i = 0; i < outputs.size(); ++i) {
    context.outputs.push_back({&outputs[i]});
    context.output_types.push_back(op_->GetOutputType(op_, i));
  }
  check(op_->KernelComputeV2(kernel_, &context));
  return outputs;
}

}  // namespace nm_export::stand_in
