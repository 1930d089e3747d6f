#include "sparse_matmul_op.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "instruction_set.h"
#include "operator_support.h"
#include "sparse_matmul.h"

namespace nm_export {
namespace {

using ort::Api;
using ort::Status;

constexpr const char* kName = "NMSparseMatMul";
enum Input : size_t { kValues, kWeight, kBias, kTokenShift, kOffset };

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

struct Kernel {
  const Api* api;
  ort::ElementType value_type;
  ort::ElementType weight_type;
  std::string node;  // for messages
  InstructionSet isa;
  size_t workers;
};

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

void run(Kernel& kernel, const SparseProduct& product, CallBuffers& buffers, ort::KernelContext* context) {
  const SparseMatMul matmul(*kernel.isa.products, product, kernel.workers, buffers);
  Job job{matmul};
  if (matmul.tasks() == 1) {
    job.run(0);
  } else {
    const auto run_task = [](void* data, size_t task) { static_cast<Job*>(data)->run(task); };
    check(kernel.api->KernelContext_ParallelFor(context, run_task, matmul.tasks(), 0, &job));
  }
  if (job.out_of_memory) throw std::bad_alloc();
}

WeightType weight_type_of(ort::ElementType type) {
  switch (type) {
    case ort::kFloat16:
      return WeightType::kFloat16;
    case ort::kBFloat16:
      return WeightType::kBFloat16;
    default:
      return WeightType::kFloat32;
  }
}

void compute(Kernel& kernel, ort::KernelContext* context) {
  const Api& api = *kernel.api;
  const ort::Value* values = input(api, context, kValues);
  const ort::Value* weight = input(api, context, kWeight);
  std::vector<int64_t> shape = shape_of(api, values);
  const std::vector<int64_t> weight_shape = shape_of(api, weight);
  if (shape.empty() || weight_shape.size() != 2 || shape.back() != weight_shape[0] || shape.back() == 0) {
    fail(api, ort::kInvalidArgument,
         kernel.node + ": values has shape " + shape_text(shape) + " and weight " + shape_text(weight_shape) +
             "; they must be [..., K] and [K, O] with K > 0");
  }
  const int64_t columns = weight_shape[1];
  const float* bias = vector_input(api, context, kBias, "bias", columns, kernel.node, "weight has O", "columns");
  const float* offset = vector_input(api, context, kOffset, "offset", columns, kernel.node, "weight has O", "columns");

  std::vector<int64_t> token_shape = shape;
  token_shape.back() = 1;
  const ort::Value* token_shift = input(api, context, kTokenShift);
  const std::vector<int64_t> actual_token_shape = shape_of(api, token_shift);
  if (actual_token_shape != token_shape) {
    fail(api, ort::kInvalidArgument,
         kernel.node + ": token_shift has shape " + shape_text(actual_token_shape) + "; values has shape " +
             shape_text(shape) + ", so it must be " + shape_text(token_shape));
  }

  SparseProduct product{};
  product.channels = static_cast<size_t>(shape.back());
  product.columns = static_cast<size_t>(columns);
  product.tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) product.tokens *= static_cast<size_t>(shape[axis]);

  shape.back() = columns;
  ort::Value* y = nullptr;
  check(api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
  if (product.tokens == 0 || product.columns == 0) return;

  product.weight = data_of<const void>(api, weight);
  product.bias = bias;
  product.token_shift = data_of<const float>(api, token_shift);
  product.offset = offset;
  product.weight_type = weight_type_of(kernel.weight_type);
  std::unique_ptr<OpBuffers> buffers = pools().ops.take();
  if (kernel.value_type == ort::kFloat) {
    product.values = data_of<const float>(api, values);
    product.y = data_of<float>(api, y);
    run(kernel, product, buffers->product, context);
  } else {
    const RowKernels& rows = *kernel.isa.kernels;
    const bool half = kernel.value_type == ort::kFloat16;
    float* widened = buffers->values.reserve(product.tokens * product.channels);
    (half ? rows.widen_float16 : rows.widen_bfloat16)(data_of<const uint16_t>(api, values),
                                                      product.tokens * product.channels, widened);
    product.values = widened;
    product.y = buffers->y.reserve(product.tokens * product.columns);
    run(kernel, product, buffers->product, context);
    (half ? rows.narrow_float16 : rows.narrow_bfloat16)(product.y, product.tokens * product.columns,
                                                        data_of<uint16_t>(api, y));
  }
  pools().ops.give_back(std::move(buffers));
}

Status* create_kernel(const ort::CustomOp* op, const ort::ApiTable*, const ort::KernelInfo* info, void** kernel) {
  const Operator& self = operator_of(op);
  const Api& api = *self.api;
  return guarded(api, kName, [&] {
    const std::string node = node_name(api, info, kName);
    const InstructionSet isa = choose_instruction_set();
    if (isa.products == nullptr) fail(api, ort::kInvalidArgument, node + ": " + isa.error);
    // The size of ONNX Runtime's pool is not told; more tasks than it has threads cost little.
    const size_t workers = std::max(1u, std::thread::hardware_concurrency());
    *kernel = new Kernel{self.api, self.inputs[kValues], self.inputs[kWeight], node, isa, workers};
  });
}

Status* compute_kernel(void* state, ort::KernelContext* context) {
  Kernel& kernel = *static_cast<Kernel*>(state);
  return guarded(*kernel.api, kName, [&] { compute(kernel, context); });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

// y has the shape of values, but for the last axis. Where values has an unknown axis without a name nothing is said:
// ONNX Runtime would warn at every run that y has another shape.
Status* infer_shapes(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Api& api = *operator_of(op).api;
  return guarded(api, kName, [&] {
    NamedShape shape = shape_of_input(api, context, kValues);
    const NamedShape weight = shape_of_input(api, context, kWeight);
    if (!shape.is_known() || weight.sizes.size() != 2 || !weight.is_known()) return;
    shape.sizes.back() = weight.sizes.back();
    shape.names.back() = weight.names.back();
    set_shape_of_output(api, context, 0, operator_of(op).inputs[kValues], shape);
  });
}

}  // namespace

Operator make_nm_sparse_matmul_op(const Api* api, ort::ElementType value_type, ort::ElementType weight_type) {
  return make_operator(api, kName, {value_type, weight_type, ort::kFloat, ort::kFloat, ort::kFloat}, {value_type},
                       {create_kernel, compute_kernel, destroy_kernel, infer_shapes});
}

}  // namespace nm_export
