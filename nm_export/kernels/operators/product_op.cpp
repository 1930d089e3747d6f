#include "operators/product_op.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "product/tuning.h"

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

bool is_short(const SparseProduct& product) {
  return product.tokens <= kTuning.most_tokens_short_call &&
         product.tokens * product.inputs * product.weight.outputs <= kTuning.work_of_short_call;
}

void run(ProductNode& node, const SparseProduct& product, CallBuffers& buffers, ort::KernelContext* context) {
  const Candidates algorithms = candidates(node.isa, product);
  const size_t paying = paying_workers(product, node.workers);
  // Each algorithm by all threads that pay, and by one.
  const size_t by_threads = paying > 1 && is_short(product) ? 2 : 1;
  const size_t count = algorithms.count * by_threads;
  std::optional<ScopedTiming> timing;
  if (count > 1) {
    timing.emplace(node.tuners.tuner_for(tuning_key(node.isa, product, count)), count, product.tokens);
  }
  const size_t chosen = timing.has_value() ? timing->candidate() : 0;
  const size_t workers = chosen % by_threads == 1 ? 1 : paying;
  const Algorithm& algorithm = *algorithms.algorithm[chosen / by_threads];
  const SparseMatMul matmul(node.isa, product, algorithm, workers, Partition::kSplitK, buffers);
  Job job{matmul};
  if (workers == 1) {
    for (size_t task = 0; task < matmul.tasks(); ++task) job.run(task);
  } else {
    // A batch is what a thread takes at once: so the caller does what a thread that wakes up late leaves.
    const auto run_task = [](void* data, size_t task) { static_cast<Job*>(data)->run(task); };
    check(node.api.KernelContext_ParallelFor(context, run_task, matmul.tasks(), matmul.tasks(), &job));
  }
  if (job.out_of_memory) throw std::bad_alloc();
  matmul.finish();
}

// Between 16-bit values and float32, with the loops of selection.
void widen(const ProductNode& node, const void* source, size_t count, float* target) {
  const SelectionKernels& kernels = *node.isa.selection;
  if (node.value_type == ort::kFloat16)
    return kernels.widen_float16(static_cast<const Float16*>(source), count, target);
  kernels.widen_bfloat16(static_cast<const BFloat16*>(source), count, target);
}

void narrow(const ProductNode& node, const float* source, size_t count, void* target) {
  const SelectionKernels& kernels = *node.isa.selection;
  if (node.value_type == ort::kFloat16) return kernels.narrow_float16(source, count, static_cast<Float16*>(target));
  kernels.narrow_bfloat16(source, count, static_cast<BFloat16*>(target));
}

}  // namespace

// The size of ONNX Runtime's pool is not told; more tasks than it has threads cost little.
ProductNode::ProductNode(const Operator& op, const ort::KernelInfo* info)
    : api(*op.api),
      value_type(op.inputs[kValuesInput]),
      name(node_name(api, info, op.name)),
      inputs(api, info, name, op.inputs.size()),
      isa(instruction_set_for(api, name)),
      workers(std::max(1u, std::thread::hardware_concurrency())) {}

ProductShapes product_shapes(const ProductNode& node, const ort::KernelContext* context) {
  const ProductShapes shapes{node.inputs.shape(context, kValuesInput), node.inputs.shape(context, kWeightInput)};
  const auto& [values, weight] = shapes;
  if (values.empty() || weight.size() != 2 || values.back() != weight[0] || values.back() == 0) {
    fail(node.api, ort::kInvalidArgument,
         node.name + ": values has shape " + shape_text(values) + " and weight " + shape_text(weight) +
             "; they must be [..., K] and [K, O] with K > 0");
  }
  return shapes;
}

void multiply(ProductNode& node, ort::KernelContext* context, const ProductShapes& shapes, const Weight& weight,
              size_t bias_input, bool int8_activations) {
  const Api& api = node.api;
  const int64_t outputs = shapes.weight[1];
  const auto vector = [&](size_t index, const char* name) {
    return node.inputs.vector(context, index, name, outputs, "weight has O", "columns");
  };
  SparseProduct product{};
  product.weight = weight;
  product.int8_activations = int8_activations;
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
  product.inputs = static_cast<size_t>(shapes.values.back());
  product.tokens = 1;
  for (const int64_t size : token_shape) product.tokens *= static_cast<size_t>(size);

  const Shape shape = shapes.values.with_last(outputs);
  ort::Value* y = nullptr;
  check(api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
  if (product.tokens == 0 || outputs == 0) return;

  const ort::Value* values = node.inputs.value(context, kValuesInput);
  std::unique_ptr<OpBuffers> buffers = pools().ops.take();
  if (node.value_type == ort::kFloat) {
    product.values = data_of<const float>(api, values);
    product.y = data_of<float>(api, y);
    run(node, product, buffers->product, context);
  } else {
    const size_t numbers = product.tokens * product.inputs;
    float* widened = buffers->values.reserve(numbers);
    widen(node, data_of<const void>(api, values), numbers, widened);
    product.values = widened;
    product.y = buffers->y.reserve(product.tokens * weight.outputs);
    run(node, product, buffers->product, context);
    narrow(node, product.y, product.tokens * weight.outputs, data_of<void>(api, y));
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
