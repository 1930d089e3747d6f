#include "product/algorithm.h"
#include "product/tuning.h"

namespace nm_export {
namespace {

size_t gather_tokens(WeightType type) {
  switch (stored_bits(type)) {
    case 32:
      return kTuning.gather_tokens_float32;
    case 16:
      return kTuning.gather_tokens_16_bits;
    case 8:
      return kTuning.gather_tokens_8_bits;
    default:
      return kTuning.gather_tokens_4_bits;
  }
}

Candidates float_candidates(const InstructionSet& isa, const SparseProduct& product) {
  const size_t tokens = product.tokens;
  const Algorithm* const rows = &gather_rows();
  const Algorithm* const unions = &gather_union();
  const Algorithm* const sparse = &packed_sparse();
  if (tokens > kTuning.most_tokens_gather_union) return {{sparse, &packed_dense()}, 2};
  if (tokens > kTuning.most_tokens_gather_rows) return {{sparse, unions}, 2};
  if (tokens <= gather_tokens(product.weight.type)) return {{rows, unions, sparse}, 3};
  if (isa.products->union_tokens < kTuning.most_tokens_gather_rows) return {{sparse, rows, unions}, 3};
  return {{unions, rows, sparse}, 3};
}

Candidates int8_candidates(const SparseProduct& product) {
  if (product.tokens > kTuning.most_tokens_gather_rows) return {{&packed_int8()}, 1};
  if (product.tokens <= gather_tokens(product.weight.type)) return {{&gather_rows(), &packed_int8()}, 2};
  return {{&packed_int8(), &gather_rows()}, 2};
}

}  // namespace

Candidates candidates(const InstructionSet& isa, const SparseProduct& product) {
  if (product.tokens == 1) return {{&gather_rows()}, 1};
  if (!is_quantized(product.weight.type)) return float_candidates(isa, product);
  if (product.int8_activations && isa.int8->packed != nullptr) return int8_candidates(product);
  // docs/semantics.md says when activations are int8; and as float32 the algorithms would round differently.
  return {{product.tokens <= kTuning.most_tokens_gather_rows ? &gather_rows() : &packed_sparse()}, 1};
}

}  // namespace nm_export
