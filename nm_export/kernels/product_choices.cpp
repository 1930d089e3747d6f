#include "product_choices.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <utility>

namespace nm_export {
namespace {

// Up to so many tokens each number of them is a kind of its own; more of them count as the next power of two.
constexpr size_t kSingleTokens = 8;

size_t kind_of_tokens(size_t tokens) {
  if (tokens <= kSingleTokens) return tokens;
  size_t power = 2 * kSingleTokens;
  while (power < tokens) power *= 2;
  return power;
}

// Eighths of the channels that a token keeps: looked up in the first channels of the first one, since N:M and `phase`
// are the same for all. Of one token every way reads just the kept channels.
size_t kept_eighths(const SparseProduct& product) {
  constexpr size_t kSample = 1024;
  constexpr size_t kParts = 8;
  if (product.tokens == 1) return 0;
  const size_t channels = std::min(kSample, product.channels);
  const auto dropped = static_cast<size_t>(std::count(product.values, product.values + channels, 0.0f));
  return (kParts * (channels - dropped) + channels / 2) / channels;
}

}  // namespace

TimedChoice& choice_of(const InstructionSet& isa, const SparseProduct& product, size_t ways) {
  const Weight& weight = product.weight;
  using Kind = std::array<size_t, 8>;
  const Kind kind = {ways,
                     static_cast<size_t>(weight.type),
                     weight.block_size,
                     product.may_round,
                     product.channels,
                     weight.columns,
                     kind_of_tokens(product.tokens),
                     kept_eighths(product)};
  using Kinds = std::map<std::pair<const char*, Kind>, TimedChoice>;
  static auto& kinds = *new Kinds;
  static auto& mutex = *new std::mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  return kinds[{isa.name, kind}];
}

}  // namespace nm_export
