#include "nm_topk_op.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "instruction_set.h"
#include "nm_topk.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

enum Input : size_t { kX, kScore, kShift, kInputCount };
enum Output : size_t { kValues, kTokenShift, kOutputCount };
enum class Phase { kBoth = 0, kPrefill = 1, kDecode = 2 };

// A failure on its way to ONNX Runtime. It stays inside this file: nothing is thrown across the C ABI.
struct Failure {
  Status* status;
};

void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] void fail(const Api& api, ort::ErrorCode code, const std::string& message) {
  throw Failure{api.CreateStatus(code, message.c_str())};
}

template <class Body>
Status* guarded(const Api& api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ort::kRuntimeException, "NMTopK: out of memory");
  } catch (...) {
    return api.CreateStatus(ort::kRuntimeException, "NMTopK: unexpected failure");
  }
}

// Workspaces of the workers that are not running now; as many are made as ever ran at once.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

struct Kernel {
  const Api* api;
  ort::ElementType element_type;
  std::string node;  // for messages
  Phase phase;
  NMTopK nm_topk;
  WorkspacePool workspaces;
};

int64_t attribute(const Api& api, const ort::KernelInfo* info, const std::string& node, const char* name,
                  int64_t smallest, int64_t largest) {
  int64_t value = 0;
  if (Status* status = api.KernelInfoGetAttribute_int64(info, name, &value)) {
    api.ReleaseStatus(status);
    fail(api, ort::kInvalidArgument, node + ": the integer attribute " + name + " is missing");
  }
  if (value < smallest || value > largest) {
    fail(api, ort::kInvalidArgument,
         node + ": the attribute " + name + " is " + std::to_string(value) + "; it must be from " +
             std::to_string(smallest) + " to " + std::to_string(largest));
  }
  return value;
}

std::string node_name(const Api& api, const ort::KernelInfo* info) {
  // The first call is refused for want of room and tells the size, which counts the terminating zero.
  size_t size = 0;
  if (Status* status = api.KernelInfo_GetNodeName(info, nullptr, &size)) api.ReleaseStatus(status);
  std::string name(size, '\0');
  if (size > 0) {
    check(api.KernelInfo_GetNodeName(info, name.data(), &size));
    name.resize(size - 1);
  }
  return "NMTopK node '" + name + "'";
}

std::vector<int64_t> shape_of(const Api& api, const ort::Value* value) {
  ort::TensorTypeAndShapeInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<ort::TensorTypeAndShapeInfo, void (*)(ort::TensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  if (rank > 0) check(api.GetDimensions(info, shape.data(), rank));
  return shape;
}

template <class T>
T* data_of(const Api& api, const ort::Value* value) {
  // ONNX Runtime has one function for both uses; what it gives for an input is only read.
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  return static_cast<T*>(data);
}

const ort::Value* input(const Api& api, const ort::KernelContext* context, size_t index) {
  const ort::Value* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  return value;
}

const float* channel_vector(const Kernel& kernel, const ort::KernelContext* context, size_t index, const char* name,
                            int64_t channels) {
  const ort::Value* value = input(*kernel.api, context, index);
  const std::vector<int64_t> shape = shape_of(*kernel.api, value);
  if (shape.size() != 1 || shape[0] != channels) {
    std::string text;
    for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    fail(*kernel.api, ort::kInvalidArgument,
         kernel.node + ": " + name + " has shape [" + text + "]; x has K = " + std::to_string(channels) +
             " channels, so it must be [" + std::to_string(channels) + "]");
  }
  return data_of<const float>(*kernel.api, value);
}

// Work of one token, in units of about one nanosecond.
size_t cost_of_token(const NMTopKParameters& parameters, size_t channels) {
  size_t cost = 1;
  if (parameters.shift_mode == ShiftMode::kDynamicMedian) cost += 4;
  if (parameters.variance_correction) cost += 1;
  return cost * channels;
}

// Below this a second thread costs more than it saves.
constexpr size_t kCostOfChunk = 16384;

template <class T>
struct Job {
  Kernel& kernel;
  const T* x;
  const float* score;
  const float* shift;
  T* values;
  float* token_shift;
  size_t tokens;
  size_t channels;
  size_t tokens_per_chunk;
  bool pruned;
  std::atomic<bool> out_of_memory{false};

  void run_chunk(size_t chunk) noexcept {
    try {
      const size_t first = chunk * tokens_per_chunk;
      const size_t count = std::min(tokens_per_chunk, tokens - first);
      std::unique_ptr<Workspace> workspace = kernel.workspaces.take();
      kernel.nm_topk.run(x + first * channels, score, shift, count, channels, pruned, *workspace,
                         values + first * channels, token_shift == nullptr ? nullptr : token_shift + first);
      kernel.workspaces.give_back(std::move(workspace));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
};

template <class T>
void compute(Kernel& kernel, ort::KernelContext* context) {
  const Api& api = *kernel.api;
  const NMTopKParameters& parameters = kernel.nm_topk.parameters();

  const ort::Value* x = input(api, context, kX);
  std::vector<int64_t> shape = shape_of(api, x);
  if (shape.empty())
    fail(api, ort::kInvalidArgument, kernel.node + ": x is a scalar; its last axis must hold the K channels");
  const int64_t channels = shape.back();
  if (channels == 0 || channels % parameters.m != 0) {
    fail(api, ort::kInvalidArgument,
         kernel.node + ": K = " + std::to_string(channels) +
             " channels is not a positive multiple of M = " + std::to_string(parameters.m));
  }
  const float* score = channel_vector(kernel, context, kScore, "score", channels);
  const float* shift = channel_vector(kernel, context, kShift, "shift", channels);

  size_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= static_cast<size_t>(shape[axis]);
  const int64_t tokens_per_sequence = shape.size() > 1 ? shape[shape.size() - 2] : 1;
  const bool pruned = kernel.phase == Phase::kBoth || (kernel.phase == Phase::kDecode) == (tokens_per_sequence == 1);

  ort::Value* values = nullptr;
  check(api.KernelContext_GetOutput(context, kValues, shape.data(), shape.size(), &values));
  shape.back() = 1;
  ort::Value* token_shift = nullptr;
  check(api.KernelContext_GetOutput(context, kTokenShift, shape.data(), shape.size(), &token_shift));
  if (tokens == 0) return;

  const auto channel_count = static_cast<size_t>(channels);
  const size_t cost = cost_of_token(parameters, channel_count);
  const size_t tokens_per_chunk = (kCostOfChunk + cost - 1) / cost;
  const size_t chunks = (tokens + tokens_per_chunk - 1) / tokens_per_chunk;
  Job<T> job{kernel,
             data_of<const T>(api, x),
             score,
             shift,
             data_of<T>(api, values),
             token_shift == nullptr ? nullptr : data_of<float>(api, token_shift),
             tokens,
             channel_count,
             tokens_per_chunk,
             pruned};
  if (chunks == 1) {
    job.run_chunk(0);
  } else {
    const auto run_chunk = [](void* data, size_t chunk) { static_cast<Job<T>*>(data)->run_chunk(chunk); };
    check(api.KernelContext_ParallelFor(context, run_chunk, chunks, 0, &job));
  }
  if (job.out_of_memory) throw std::bad_alloc();
}

Status* create_kernel(const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info, void** kernel) {
  const auto& self = *static_cast<const NMTopKOp*>(op);
  const Api& api = *self.api;
  return guarded(api, [&] {
    const std::string node = node_name(api, info);
    const int64_t m = attribute(api, info, node, "m", 1, kMaxGroupSize);
    const int64_t n = attribute(api, info, node, "n", 1, m);
    const int64_t shift_mode = attribute(api, info, node, "shift_mode", 0, 2);
    const int64_t variance_correction = attribute(api, info, node, "variance_correction", 0, 1);
    const int64_t phase = attribute(api, info, node, "phase", 0, 2);
    const InstructionSet isa = choose_instruction_set();
    if (isa.kernels == nullptr) fail(api, ort::kInvalidArgument, node + ": " + isa.error);
    const NMTopKParameters parameters{static_cast<int>(n), static_cast<int>(m), static_cast<ShiftMode>(shift_mode),
                                      variance_correction == 1};
    *kernel =
        new Kernel{self.api, self.element_type, node, static_cast<Phase>(phase), NMTopK(parameters, *isa.kernels), {}};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.api, [&] {
    switch (kernel.element_type) {
      case ort::kFloat:
        return compute<float>(kernel, context);
      case ort::kFloat16:
        return compute<Float16>(kernel, context);
      case ort::kBFloat16:
        return compute<BFloat16>(kernel, context);
    }
  });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

// Both outputs have the shape of x, but for the last axis of token_shift. Where x has an unknown axis without a name
// nothing is said: ONNX Runtime would warn at every run that the outputs have another shape.
Status* infer_shapes(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Api& api = *static_cast<const NMTopKOp*>(op)->api;
  return guarded(api, [&] {
    ort::TensorTypeAndShapeInfo* x = nullptr;
    check(api.ShapeInferContext_GetInputTypeShape(context, kX, &x));
    size_t rank = 0;
    check(api.GetDimensionsCount(x, &rank));
    if (rank == 0) return;
    std::vector<int64_t> shape(rank);
    std::vector<const char*> names(rank);
    check(api.GetDimensions(x, shape.data(), rank));
    check(api.GetSymbolicDimensions(x, names.data(), rank));
    for (size_t axis = 0; axis < rank; ++axis) {
      const bool named = names[axis] != nullptr && names[axis][0] != '\0';
      if (shape[axis] < 0 && !named) return;
    }
    check(api.ShapeInferContext_SetOutputTypeShape(context, kValues, x));

    shape.back() = 1;
    names.back() = "";
    ort::TensorTypeAndShapeInfo* token_shift = nullptr;
    check(api.CreateTensorTypeAndShapeInfo(&token_shift));
    const std::unique_ptr<ort::TensorTypeAndShapeInfo, void (*)(ort::TensorTypeAndShapeInfo*)> owner(
        token_shift, api.ReleaseTensorTypeAndShapeInfo);
    check(api.SetTensorElementType(token_shift, ort::kFloat));
    check(api.SetDimensions(token_shift, shape.data(), rank));
    check(api.SetSymbolicDimensions(token_shift, names.data(), rank));
    check(api.ShapeInferContext_SetOutputTypeShape(context, kTokenShift, token_shift));
  });
}

}  // namespace

NMTopKOp make_nm_topk_op(const Api* api, ort::ElementType element_type) {
  NMTopKOp op{};
  op.version = ort::kCustomOpVersion;
  op.GetName = [](const ort::CustomOp*) { return "NMTopK"; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const ort::CustomOp* self, size_t index) {
    return index == kX ? static_cast<const NMTopKOp*>(self)->element_type : ort::kFloat;
  };
  op.GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return kInputCount; };
  op.GetOutputType = [](const ort::CustomOp* self, size_t index) {
    return index == kValues ? static_cast<const NMTopKOp*>(self)->element_type : ort::kFloat;
  };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return kOutputCount; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kInputRequired; };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kInputRequired; };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kMemoryDefault; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute_kernel;
  op.KernelDestroy = destroy_kernel;
  op.InferOutputShapeFn = infer_shapes;
  op.api = api;
  op.element_type = element_type;
  return op;
}

}  // namespace nm_export
