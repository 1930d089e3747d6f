#include "product/tuner_registry.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "product/tuning.h"

namespace nm_export {
namespace {

// The first buckets are of one number of tokens each, the others of all up to the next power of two.
size_t bucket_of(size_t tokens) {
  if (tokens <= kTuning.single_tokens) return tokens;
  size_t bucket = kTuning.single_tokens + 1;
  for (size_t power = 2 * kTuning.single_tokens; power < tokens; power *= 2) ++bucket;
  return bucket;
}

// Looked up in the first inputs of the first token, since N:M and `phase` are the same for all. Of one token every
// candidate reads just the kept inputs.
size_t kept_eighths(const SparseProduct& product) {
  constexpr size_t kParts = 8;
  if (product.tokens == 1) return 0;
  const size_t inputs = std::min(kTuning.sampled_values, product.inputs);
  const auto pruned = static_cast<size_t>(std::count(product.values, product.values + inputs, 0.0f));
  return (kParts * (inputs - pruned) + inputs / 2) / inputs;
}

auto fields(const TuningKey& key) {
  return std::tie(key.isa, key.candidates, key.type, key.block_size, key.int8_activations, key.inputs, key.outputs,
                  key.token_bucket, key.kept_eighths);
}

struct InOrder {
  bool operator()(const TuningKey& a, const TuningKey& b) const { return fields(a) < fields(b); }
};

}  // namespace

bool TuningKey::operator==(const TuningKey& other) const { return fields(*this) == fields(other); }

TuningKey tuning_key(const InstructionSet& isa, const SparseProduct& product, size_t candidates) {
  const Weight& weight = product.weight;
  return {isa.name,
          candidates,
          weight.type,
          weight.block_size,
          product.int8_activations,
          product.inputs,
          weight.outputs,
          bucket_of(product.tokens),
          kept_eighths(product)};
}

struct TunerCache::Entry {
  const TuningKey key;
  mutable AutoTuner tuner;
};

const TunerCache::Entry* TunerCache::find(const TuningKey& key) {
  using Entries = std::map<TuningKey, std::unique_ptr<const Entry>, InOrder>;
  static auto& entries = *new Entries;
  static auto& mutex = *new std::mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<const Entry>& entry = entries[key];
  if (entry == nullptr) entry.reset(new Entry{key, {}});
  return entry.get();
}

AutoTuner& TunerCache::tuner_for(const TuningKey& key) {
  std::atomic<const Entry*>& place = entries_[key.token_bucket % kBuckets];
  const Entry* entry = place.load(std::memory_order_acquire);
  if (entry == nullptr || !(entry->key == key)) {
    entry = find(key);
    place.store(entry, std::memory_order_release);
  }
  return entry->tuner;
}

}  // namespace nm_export
