// The tuners of this process, one for each kind of product.
//
// All layers of a model, and all sessions, learn from each other: a model of 30 layers has tried all candidates after
// some of them. Sessions with other numbers of threads do too; where their times differ, those of the faster one count,
// because a tuner looks at lower costs.
#pragma once

#include <array>
#include <atomic>

#include "product/algorithm.h"
#include "product/auto_tuner.h"

namespace nm_export {

// What products have in common that share a tuner.
struct TuningKey {
  const char* isa;
  size_t candidates;
  WeightType type;
  size_t block_size;
  bool int8_activations;
  size_t inputs;
  size_t outputs;
  size_t token_bucket;
  size_t kept_eighths;  // of the inputs, of a token

  bool operator==(const TuningKey& other) const;
};

// Of the product that is about to run, with so many candidates.
TuningKey tuning_key(const InstructionSet& isa, const SparseProduct& product, size_t candidates);

// Where a node remembers the tuners of its own products, so that a call looks at no map and waits for no lock: one for
// each bucket of tokens, since what else is in the key rarely changes within a node. Calls from several threads may
// share it.
class TunerCache {
 public:
  // The tuner of this key, from the registry where it is not the remembered one. Never freed. Throws std::bad_alloc.
  AutoTuner& tuner_for(const TuningKey& key);

 private:
  struct Entry;
  static const Entry* find(const TuningKey& key);

  static constexpr size_t kBuckets = 32;
  std::array<std::atomic<const Entry*>, kBuckets> entries_{};
};

}  // namespace nm_export
