#include "operators/nm_topk_op.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "isa/instruction_set.h"
#include "operators/operator_functions.h"
#include "selection/nm_topk.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

enum Input : size_t { kX, kScore, kShift };
enum Output : size_t { kValues, kTokenShift };
enum class Phase { kBoth = 0, kPrefill = 1, kDecode = 2 };

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
  const NMTopK& nm_topk;
  BufferPool<Workspace>& workspaces;
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
      std::unique_ptr<Workspace> workspace = workspaces.take();
      nm_topk.run(x + first * channels, score, Shift{shift, 0.0f}, count, channels, pruned, *workspace,
                  values + first * channels, token_shift == nullptr ? nullptr : token_shift + first);
      workspaces.give_back(std::move(workspace));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
};

class Kernel {
 public:
  static constexpr const char* kName = "NMTopK";

  Kernel(const Operator& op, const ort::KernelInfo* info)
      : api_(*op.api),
        element_type_(op.inputs[kX]),
        node_(node_name(api_, info, kName)),
        inputs_(api_, info, node_, op.inputs.size()),
        phase_(static_cast<Phase>(int_attribute(api_, info, node_, "phase", 0, 2))),
        nm_topk_(parameters(info), *instruction_set_for(api_, node_).selection) {}

  const Api& api() const { return api_; }

  void compute(ort::KernelContext* context) {
    switch (element_type_) {
      case ort::kFloat16:
        return compute_as<Float16>(context);
      case ort::kBFloat16:
        return compute_as<BFloat16>(context);
      default:
        return compute_as<float>(context);
    }
  }

 private:
  NMTopKParameters parameters(const ort::KernelInfo* info) const {
    const int64_t m = int_attribute(api_, info, node_, "m", 1, std::numeric_limits<int>::max());
    const int64_t n = int_attribute(api_, info, node_, "n", 1, m);
    const int64_t shift_mode = int_attribute(api_, info, node_, "shift_mode", 0, 2);
    const int64_t variance_correction = int_attribute(api_, info, node_, "variance_correction", 0, 1);
    const int64_t strided = int_attribute(api_, info, node_, "strided", 0, 1, 0);
    return {static_cast<int>(n), static_cast<int>(m), static_cast<ShiftMode>(shift_mode), variance_correction == 1,
            strided == 1};
  }

  template <class T>
  void compute_as(ort::KernelContext* context) {
    const NMTopKParameters& parameters = nm_topk_.parameters();

    const Shape shape = inputs_.shape(context, kX);
    if (shape.empty())
      fail(api_, ort::kInvalidArgument, node_ + ": x is a scalar; its last axis must hold the K channels");
    const int64_t channels = shape.back();
    if (channels == 0 || channels % parameters.m != 0) {
      fail(api_, ort::kInvalidArgument,
           node_ + ": K = " + std::to_string(channels) +
               " channels is not a positive multiple of M = " + std::to_string(parameters.m));
    }
    const auto vector = [&](size_t index, const char* name) {
      return inputs_.vector(context, index, name, channels, "x has K", "channels");
    };
    const float* score = vector(kScore, "score");
    const float* shift = vector(kShift, "shift");

    size_t tokens = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= static_cast<size_t>(shape[axis]);
    const int64_t tokens_per_sequence = shape.size() > 1 ? shape[shape.size() - 2] : 1;
    const bool pruned = phase_ == Phase::kBoth || (phase_ == Phase::kDecode) == (tokens_per_sequence == 1);

    ort::Value* values = nullptr;
    check(api_.KernelContext_GetOutput(context, kValues, shape.data(), shape.size(), &values));
    const Shape token_shape = shape.with_last(1);
    ort::Value* token_shift = nullptr;
    check(api_.KernelContext_GetOutput(context, kTokenShift, token_shape.data(), token_shape.size(), &token_shift));
    if (tokens == 0) return;

    const auto channel_count = static_cast<size_t>(channels);
    const size_t cost = cost_of_token(parameters, channel_count);
    const size_t tokens_per_chunk = (kCostOfChunk + cost - 1) / cost;
    const size_t chunks = (tokens + tokens_per_chunk - 1) / tokens_per_chunk;
    Job<T> job{nm_topk_,
               workspaces_,
               data_of<const T>(api_, inputs_.value(context, kX)),
               score,
               shift,
               data_of<T>(api_, values),
               token_shift == nullptr ? nullptr : data_of<float>(api_, token_shift),
               tokens,
               channel_count,
               tokens_per_chunk,
               pruned};
    if (chunks == 1) {
      job.run_chunk(0);
    } else {
      const auto run_chunk = [](void* data, size_t chunk) { static_cast<Job<T>*>(data)->run_chunk(chunk); };
      check(api_.KernelContext_ParallelFor(context, run_chunk, chunks, 0, &job));
    }
    if (job.out_of_memory) throw std::bad_alloc();
  }

  const Api& api_;
  const ort::ElementType element_type_;
  const std::string node_;  // for messages
  const NodeInputs inputs_;
  const Phase phase_;
  const NMTopK nm_topk_;
  BufferPool<Workspace> workspaces_;
};

// Both outputs have the shape of x, but for the last axis of token_shift. Where x has an unknown axis without a name
// nothing is said: ONNX Runtime would warn at every run that the outputs have another shape.
Status* infer_shapes(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Api& api = *operator_of(op).api;
  return guarded(api, Kernel::kName, [&] {
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
  return make_operator(api, Kernel::kName, {element_type, ort::kFloat, ort::kFloat}, {element_type, ort::kFloat},
                       operator_functions<Kernel>(infer_shapes));
}

}  // namespace nm_export
