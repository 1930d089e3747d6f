#include "nm_topk_op.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "instruction_set.h"
#include "nm_topk.h"
#include "operator_support.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* kName = "NMTopK";
enum Input : size_t { kX, kScore, kShift };
enum Output : size_t { kValues, kTokenShift };
enum class Phase { kBoth = 0, kPrefill = 1, kDecode = 2 };

struct Kernel {
  const Api* api;
  ort::ElementType element_type;
  std::string node;  // for messages
  NodeInputs inputs;
  Phase phase;
  NMTopK nm_topk;
  BufferPool<Workspace> workspaces;
};

// Work of one token, in units of about one nanosecond.
size_t cost_of_token(const NMTopKParameters& parameters, size_t channels) {
  size_t cost = 1;
  if (parameters.shift_mode == ShiftMode::kDynamicMedian) cost += 4;
  if (parameters.variance_correction) cost += 1;
  if (parameters.m > kMaxGroupSize) cost += 1;
  if (parameters.strided) cost += 2;
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
      kernel.nm_topk.run(x + first * channels, score, Shift{shift, 0.0f}, count, channels, pruned, *workspace,
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

  const Shape shape = kernel.inputs.shape(context, kX);
  if (shape.empty())
    fail(api, ort::kInvalidArgument, kernel.node + ": x is a scalar; its last axis must hold the K channels");
  const int64_t channels = shape.back();
  if (channels == 0 || channels % parameters.m != 0) {
    fail(api, ort::kInvalidArgument,
         kernel.node + ": K = " + std::to_string(channels) +
             " channels is not a positive multiple of M = " + std::to_string(parameters.m));
  }
  const auto vector = [&](size_t index, const char* name) {
    return kernel.inputs.vector(context, index, name, channels, "x has K", "channels");
  };
  const float* score = vector(kScore, "score");
  const float* shift = vector(kShift, "shift");

  size_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= static_cast<size_t>(shape[axis]);
  const int64_t tokens_per_sequence = shape.size() > 1 ? shape[shape.size() - 2] : 1;
  const bool pruned = kernel.phase == Phase::kBoth || (kernel.phase == Phase::kDecode) == (tokens_per_sequence == 1);

  ort::Value* values = nullptr;
  check(api.KernelContext_GetOutput(context, kValues, shape.data(), shape.size(), &values));
  const Shape token_shape = shape.with_last(1);
  ort::Value* token_shift = nullptr;
  check(api.KernelContext_GetOutput(context, kTokenShift, token_shape.data(), token_shape.size(), &token_shift));
  if (tokens == 0) return;

  const auto channel_count = static_cast<size_t>(channels);
  const size_t cost = cost_of_token(parameters, channel_count);
  const size_t tokens_per_chunk = (kCostOfChunk + cost - 1) / cost;
  const size_t chunks = (tokens + tokens_per_chunk - 1) / tokens_per_chunk;
  Job<T> job{kernel,
             data_of<const T>(api, kernel.inputs.value(context, kX)),
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
  const Operator& self = operator_of(op);
  const Api& api = *self.api;
  return guarded(api, kName, [&] {
    const std::string node = node_name(api, info, kName);
    const int64_t m = int_attribute(api, info, node, "m", 1, std::numeric_limits<int>::max());
    const int64_t n = int_attribute(api, info, node, "n", 1, m);
    const int64_t shift_mode = int_attribute(api, info, node, "shift_mode", 0, 2);
    const int64_t variance_correction = int_attribute(api, info, node, "variance_correction", 0, 1);
    const int64_t phase = int_attribute(api, info, node, "phase", 0, 2);
    const int64_t strided = int_attribute(api, info, node, "strided", 0, 1, 0);
    const InstructionSet isa = choose_instruction_set();
    if (isa.kernels == nullptr) fail(api, ort::kInvalidArgument, node + ": " + isa.error);
    const NMTopKParameters parameters{static_cast<int>(n), static_cast<int>(m), static_cast<ShiftMode>(shift_mode),
                                      variance_correction == 1, strided == 1};
    *kernel = new Kernel{self.api,
                         self.inputs[kX],
                         node,
                         NodeInputs(api, info, node, self.inputs.size()),
                         static_cast<Phase>(phase),
                         NMTopK(parameters, *isa.kernels),
                         {}};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.api, kName, [&] {
    switch (kernel.element_type) {
      case ort::kFloat16:
        return compute<Float16>(kernel, context);
      case ort::kBFloat16:
        return compute<BFloat16>(kernel, context);
      default:
        return compute<float>(kernel, context);
    }
  });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

// Both outputs have the shape of x, but for the last axis of token_shift. Where x has an unknown axis without a name
// nothing is said: ONNX Runtime would warn at every run that the outputs have another shape.
Status* infer_shapes(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Api& api = *operator_of(op).api;
  return guarded(api, kName, [&] {
    NamedShape shape = shape_of_input(api, context, kX);
    if (!shape.is_known()) return;
    ort::TensorTypeAndShapeInfo* x = nullptr;
    check(api.ShapeInferContext_GetInputTypeShape(context, kX, &x));
    check(api.ShapeInferContext_SetOutputTypeShape(context, kValues, x));
    shape.sizes.back() = 1;
    shape.names.back() = "";
    set_shape_of_output(api, context, kTokenShift, ort::kFloat, shape);
  });
}

}  // namespace

Operator make_nm_topk_op(const Api* api, ort::ElementType element_type) {
  return make_operator(api, kName, {element_type, ort::kFloat, ort::kFloat}, {element_type, ort::kFloat},
                       {create_kernel, compute_kernel, destroy_kernel, infer_shapes});
}

}  // namespace nm_export
