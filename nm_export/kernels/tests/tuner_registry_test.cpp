// Products that are alike share a tuner, whichever node asks, and others do not.
#include "product/tuner_registry.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using namespace nm_export;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

TuningKey key_of(size_t tokens, size_t inputs, float value) {
  const std::vector<float> values(tokens * inputs, value);
  SparseProduct product{};
  product.weight.type = WeightType::kFloat32;
  product.weight.outputs = 64;
  product.values = values.data();
  product.tokens = tokens;
  product.inputs = inputs;
  return tuning_key(*supported_instruction_sets().front(), product, 3);
}

}  // namespace

int main() {
  TunerCache first, second;
  AutoTuner& tuner = first.tuner_for(key_of(4, 128, 1.0f));
  expect(&first.tuner_for(key_of(4, 128, 1.0f)) == &tuner, "a node gets its tuner again");
  expect(&second.tuner_for(key_of(4, 128, 1.0f)) == &tuner, "another node gets the same tuner");
  expect(&first.tuner_for(key_of(5, 128, 1.0f)) != &tuner, "few tokens have a tuner for each number of them");
  expect(&first.tuner_for(key_of(100, 128, 1.0f)) == &first.tuner_for(key_of(128, 128, 1.0f)),
         "many tokens share a tuner up to the next power of two");
  expect(&first.tuner_for(key_of(4, 192, 1.0f)) != &tuner, "another shape has another tuner");
  expect(&first.tuner_for(key_of(4, 128, 0.0f)) != &tuner, "another share of kept inputs has another tuner");
  expect(&first.tuner_for(key_of(4, 128, 1.0f)) == &tuner, "the first one is found again after others of its bucket");
  expect(&first.tuner_for(key_of(1, 128, 1.0f)) == &first.tuner_for(key_of(1, 128, 0.0f)),
         "one token's tuner does not depend on what is kept");
}
