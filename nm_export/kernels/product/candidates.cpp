#include "product/algorithm.h"
#include "product/tuning.h"

namespace nm_export {
namespace {

Candidates float_candidates(const InstructionSet& isa, const SparseProduct& product) {
  const size_t tokens = product.tokens;
  const Algorithm* const rows = &gather_rows();
  const Algorithm* const unions = &gather_union();
  const Algorithm* const sparse = &packed_sparse();
  if (tokens > kTuning.most_tokens_gather_union) return {{sparse, &packed_dense()}, 2};
  if (tokens > kTuning.most_tokens_gather_rows) return {{sparse, unions}, 2};
  const bool is_float32 = product.weight.type == WeightType::kFloat32;
  const size_t gathering = is_float32 ? kTuning.gather_tokens_float32 : kTuning.gather_tokens_16_bits;
  if (tokens <= gathering) return {{rows, unions, sparse}, 3};
  if (isa.products->union_tokens < kTuning.most_tokens_gather_rows) return {{sparse, rows, unions}, 3};
  return {{unions, rows, sparse}, 3};
}

}  // namespace

Candidates candidates(const InstructionSet& isa, const SparseProduct& product) {
  if (product.tokens == 1) return {{&gather_rows()}, 1};
  if (!is_quantized(product.weight.type)) return float_candidates(isa, product);
  const bool gather = product.tokens <= most_tokens_gather_rows(product);
  if (product.int8_activations && isa.int8->packed != nullptr) {
    if (gather) return {{&gather_rows(), &packed_int8()}, 2};
    return {{&packed_int8()}, 1};
  }
  // docs/semantics.md says when activations are int8; and as float32 the algorithms would round differently.
  return {{gather ? &gather_rows() : &packed_sparse()}, 1};
}

}  // namespace nm_export
