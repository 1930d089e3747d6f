// One product with a pruned input, as its caller describes it.
#pragma once

#include "product/weight.h"

namespace nm_export {

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// y = values W + token_shift * offset + bias. At least one token, input and output.
struct SparseProduct {
  Weight weight;             // [inputs, outputs]
  const float* values;       // [tokens, inputs]; zeros are skipped
  const float* bias;         // [outputs]
  const float* token_shift;  // [tokens]
  const float* offset;       // [outputs]
  float* y;                  // [tokens, outputs]
  size_t tokens;
  size_t inputs;          // < 2^32
  bool int8_activations;  // values may be rounded where the weight is quantized: accuracy level 4
};

}  // namespace nm_export
