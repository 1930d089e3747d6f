#include "product_call.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "product_choices.h"
#include "sparse_matmul.h"

namespace nm_export {
namespace {

using ort::Api;

// Of one call: those of the product, and float32 copies of 16-bit values and y.
struct OpBuffers {
  CallBuffers product;
  AlignedBuffer<float> values;
  AlignedBuffer<float> y;
};

// Shared by all nodes of all sessions: buffers that were just used are in the caches. Never freed, like the domain.
struct Pools {
  BufferPool<OpBuffers> ops;
  BufferPool<WorkerBuffers> workers;
};

Pools& pools() {
  static auto& shared = *new Pools;
  return shared;
}

struct Job {
  const SparseMatMul& product;
  std::atomic<bool> out_of_memory{false};

  void run(size_t task) noexcept {
    try {
      std::unique_ptr<WorkerBuffers> buffers = pools().workers.take();
      product.run(task, *buffers);
      pools().workers.give_back(std::move(buffers));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
};

// Calls of up to so many tokens and multiplications, half of them of zeros, are tried by one thread too: more of them
// take so long, a millisecond and more as float32, that several pay.
constexpr size_t kMostTokensOfShortCall = 8;
constexpr size_t kWorkOfShortCall = size_t{1} << 23;

bool is_short(const SparseProduct& product) {
  return product.tokens <= kMostTokensOfShortCall &&
         product.tokens * product.channels * product.weight.columns <= kWorkOfShortCall;
}

void run(const ProductNode& node, const SparseProduct& product, CallBuffers& buffers, ort::KernelContext* context) {
  const Ways ways = ways_of(node.isa, product);
  const size_t paying = paying_workers(product, node.workers);
  const size_t by_threads = paying > 1 && is_short(product) ? 2 : 1;
  const size_t choices = ways.count * by_threads;
  std::optional<TimedCall> timed;
  if (choices > 1) timed.emplace(choice_of(node.isa, product, choices), choices, product.tokens);
  const size_t chosen = timed.has_value() ? timed->way() : 0;
  const size_t workers = chosen % by_threads == 1 ? 1 : paying;
  const SparseMatMul matmul(node.isa, product, ways.way[chosen / by_threads], workers, Cut::kChannels, buffers);
  Job job{matmul};
  if (workers == 1) {
    for (size_t task = 0; task < matmul.tasks(); ++task) job.run(task);
  } else {
    // A batch is what a thread takes at once: so the caller does what a thread that wakes up late leaves.
    const auto run_task = [](void* data, size_t task) { static_cast<Job*>(data)->run(task); };
    check(node.api->KernelContext_ParallelFor(context, run_task, matmul.tasks(), matmul.tasks(), &job));
  }
  if (job.out_of_memory) throw std::bad_alloc();
  matmul.finish();
}

}  // namespace

ProductNode make_product_node(const Operator& op, const ort::KernelInfo* info) {
  const Api& api = *op.api;
  const std::string name = node_name(api, info, op.name);
  const InstructionSet isa = choose_instruction_set();
  if (isa.products == nullptr) fail(api, ort::kInvalidArgument, name + ": " + isa.error);
  // The size of ONNX Runtime's pool is not told; more tasks than it has threads cost little.
  const size_t workers = std::max(1u, std::thread::hardware_concurrency());
  return {op.api, op.inputs[kValuesInput], name, NodeInputs(api, info, name, op.inputs.size()), isa, workers};
}

ProductShapes product_shapes(const ProductNode& node, const ort::KernelContext* context) {
  const ProductShapes shapes{node.inputs.shape(context, kValuesInput), node.inputs.shape(context, kWeightInput)};
  const auto& [values, weight] = shapes;
  if (values.empty() || weight.size() != 2 || values.back() != weight[0] || values.back() == 0) {
    fail(*node.api, ort::kInvalidArgument,
         node.name + ": values has shape " + shape_text(values) + " and weight " + shape_text(weight) +
             "; they must be [..., K] and [K, O] with K > 0");
  }
  return shapes;
}

void multiply(const ProductNode& node, ort::KernelContext* context, const ProductShapes& shapes, const Weight& weight,
              size_t bias_input, bool may_round) {
  const Api& api = *node.api;
  const int64_t columns = shapes.weight[1];
  const auto vector = [&](size_t index, const char* name) {
    return node.inputs.vector(context, index, name, columns, "weight has O", "columns");
  };
  SparseProduct product{};
  product.weight = weight;
  product.may_round = may_round;
  product.bias = vector(bias_input, "bias");
  product.offset = vector(bias_input + 2, "offset");

  const Shape token_shape = shapes.values.with_last(1);
  const Shape actual_token_shape = node.inputs.shape(context, bias_input + 1);
  if (actual_token_shape != token_shape) {
    fail(api, ort::kInvalidArgument,
         node.name + ": token_shift has shape " + shape_text(actual_token_shape) + "; values has shape " +
             shape_text(shapes.values) + ", so it must be " + shape_text(token_shape));
  }
  product.token_shift = data_of<const float>(api, node.inputs.value(context, bias_input + 1));
  product.channels = static_cast<size_t>(shapes.values.back());
  product.tokens = 1;
  for (const int64_t size : token_shape) product.tokens *= static_cast<size_t>(size);

  const Shape shape = shapes.values.with_last(columns);
  ort::Value* y = nullptr;
  check(api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
  if (product.tokens == 0 || columns == 0) return;

  const ort::Value* values = node.inputs.value(context, kValuesInput);
  std::unique_ptr<OpBuffers> buffers = pools().ops.take();
  if (node.value_type == ort::kFloat) {
    product.values = data_of<const float>(api, values);
    product.y = data_of<float>(api, y);
    run(node, product, buffers->product, context);
  } else {
    const RowKernels& rows = *node.isa.kernels;
    const bool half = node.value_type == ort::kFloat16;
    const size_t numbers = product.tokens * product.channels;
    float* widened = buffers->values.reserve(numbers);
    (half ? rows.widen_float16 : rows.widen_bfloat16)(data_of<const uint16_t>(api, values), numbers, widened);
    product.values = widened;
    product.y = buffers->y.reserve(product.tokens * weight.columns);
    run(node, product, buffers->product, context);
    (half ? rows.narrow_float16 : rows.narrow_bfloat16)(product.y, product.tokens * weight.columns,
                                                        data_of<uint16_t>(api, y));
  }
  pools().ops.give_back(std::move(buffers));
}

// Where values has an unknown axis without a name nothing is said: ONNX Runtime would warn at every run that y has
// another shape.
ort::Status* infer_product_shape(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Operator& self = operator_of(op);
  const Api& api = *self.api;
  return guarded(api, self.name, [&] {
    NamedShape shape = shape_of_input(api, context, kValuesInput);
    const NamedShape weight = shape_of_input(api, context, kWeightInput);
    if (!shape.is_known() || weight.sizes.size() != 2 || !weight.is_known()) return;
    shape.sizes.back() = weight.sizes.back();
    shape.names.back() = weight.names.back();
    set_shape_of_output(api, context, 0, self.inputs[kValuesInput], shape);
  });
}

}  // namespace nm_export
