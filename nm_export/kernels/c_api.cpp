#include "c_api.h"

#include <algorithm>
#include <new>
#include <vector>

#include "isa/instruction_set.h"
#include "product/sparse_matmul.h"
#include "selection/nm_topk.h"

namespace nm_export {
namespace {

// Null where the environment asks for one that cannot be used. Chosen once: the environment must not be read while
// another thread of the host writes to it, and asking the processor is slow on virtual machines.
const InstructionSet* instruction_set() {
  static const InstructionSet* const chosen = choose_instruction_set().set;
  return chosen;
}

bool is_dtype(int32_t dtype) { return NM_EXPORT_FLOAT32 <= dtype && dtype <= NM_EXPORT_BFLOAT16; }

bool is_pattern(int32_t n, int32_t m, size_t channels) {
  return 1 <= n && n <= m && channels > 0 && channels % static_cast<size_t>(m) == 0;
}

template <class Body>
int32_t guarded(Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return NM_EXPORT_OUT_OF_MEMORY;
  } catch (...) {
    return NM_EXPORT_FAILURE;
  }
}

template <class T>
void run(const nm_export_nm_topk_arguments& a, const NMTopK& nm_topk, const float* score, size_t first, size_t count) {
  Shift shift{nullptr, 0.0f};
  if (a.shift != nullptr) shift = a.shift_size == 1 ? Shift{nullptr, *a.shift} : Shift{a.shift, 0.0f};
  Workspace workspace;
  nm_topk.run(static_cast<const T*>(a.x) + first * a.channels, score, shift, count, a.channels, a.pruned != 0,
              workspace, static_cast<T*>(a.values) + first * a.channels,
              a.token_shift == nullptr ? nullptr : a.token_shift + first);
}

int32_t nm_topk_rows(const nm_export_nm_topk_arguments& a, size_t first, size_t count) {
  if (!is_pattern(a.n, a.m, a.channels)) return NM_EXPORT_INVALID_ARGUMENT;
  if (a.shift_mode < 0 || a.shift_mode > 2) return NM_EXPORT_INVALID_ARGUMENT;
  if (a.shift != nullptr && a.shift_size != 1 && a.shift_size != a.channels) return NM_EXPORT_INVALID_ARGUMENT;
  if (!is_dtype(a.dtype)) return NM_EXPORT_INVALID_ARGUMENT;
  const InstructionSet* isa = instruction_set();
  if (isa == nullptr) return NM_EXPORT_NO_INSTRUCTION_SET;
  if (count == 0) return NM_EXPORT_OK;

  const NMTopK nm_topk({a.n, a.m, static_cast<ShiftMode>(a.shift_mode), a.variance_correction != 0}, *isa->selection);
  const std::vector<float> ones(a.score == nullptr ? a.channels : 0, 1.0f);
  const float* score = a.score == nullptr ? ones.data() : a.score;
  switch (a.dtype) {
    case NM_EXPORT_FLOAT32:
      run<float>(a, nm_topk, score, first, count);
      break;
    case NM_EXPORT_FLOAT16:
      run<Float16>(a, nm_topk, score, first, count);
      break;
    default:
      run<BFloat16>(a, nm_topk, score, first, count);
  }
  return NM_EXPORT_OK;
}

int32_t keep_mask_rows(const float* scores, size_t rows, size_t channels, int32_t n, int32_t m, uint8_t* mask) {
  if (!is_pattern(n, m, channels)) return NM_EXPORT_INVALID_ARGUMENT;
  const InstructionSet* isa = instruction_set();
  if (isa == nullptr) return NM_EXPORT_NO_INSTRUCTION_SET;
  if (rows == 0) return NM_EXPORT_OK;

  const NMTopK nm_topk({n, m, ShiftMode::kStatic, false}, *isa->selection);
  Workspace workspace;
  nm_topk.keep_mask(scores, rows, channels, workspace, mask);
  return NM_EXPORT_OK;
}

WeightType weight_type_of(int32_t dtype) {
  switch (dtype) {
    case NM_EXPORT_FLOAT32:
      return WeightType::kFloat32;
    case NM_EXPORT_FLOAT16:
      return WeightType::kFloat16;
    default:
      return WeightType::kBFloat16;
  }
}

int32_t sparse_matmul_part(const nm_export_sparse_matmul_arguments& a, size_t part, size_t parts) {
  if (a.channels == 0 || a.channels > UINT32_MAX || part >= parts) return NM_EXPORT_INVALID_ARGUMENT;
  if (!is_dtype(a.dtype)) return NM_EXPORT_INVALID_ARGUMENT;
  const InstructionSet* isa = instruction_set();
  if (isa == nullptr) return NM_EXPORT_NO_INSTRUCTION_SET;
  if (a.tokens == 0 || a.columns == 0) return NM_EXPORT_OK;

  const std::vector<float> zeros(std::max(a.tokens, a.columns));
  SparseProduct product{};
  product.values = a.values;
  product.weight.type = weight_type_of(a.dtype);
  product.weight.data = a.weight;
  product.weight.outputs = a.columns;
  product.bias = a.bias == nullptr ? zeros.data() : a.bias;
  product.token_shift = zeros.data();
  product.offset = zeros.data();
  product.y = a.y;
  product.tokens = a.tokens;
  product.inputs = a.channels;
  CallBuffers call_buffers;
  WorkerBuffers worker_buffers;
  const Algorithm& algorithm = *candidates(*isa, product).algorithm[0];
  const SparseMatMul matmul(*isa, product, algorithm, paying_workers(product, parts), Partition::kOutputs,
                            call_buffers);
  for (size_t task = part; task < matmul.tasks(); task += parts) matmul.run(task, worker_buffers);
  return NM_EXPORT_OK;
}

}  // namespace
}  // namespace nm_export

extern "C" {

int32_t nm_export_c_api_version() { return NM_EXPORT_C_API_VERSION; }

int32_t nm_export_nm_topk(const nm_export_nm_topk_arguments* arguments, size_t first_row, size_t row_count) {
  return nm_export::guarded([=] { return nm_export::nm_topk_rows(*arguments, first_row, row_count); });
}

int32_t nm_export_keep_mask(const float* scores, size_t rows, size_t channels, int32_t n, int32_t m, uint8_t* mask) {
  return nm_export::guarded([=] { return nm_export::keep_mask_rows(scores, rows, channels, n, m, mask); });
}

int32_t nm_export_sparse_matmul(const nm_export_sparse_matmul_arguments* arguments, size_t part, size_t parts) {
  return nm_export::guarded([=] { return nm_export::sparse_matmul_part(*arguments, part, parts); });
}
}
