// Which of several candidates, which compute the same, is fastest: measured while they are used (online).
//
// What is fastest depends on the machine and on what else it does. Waking a thread takes from one microsecond, where
// idle threads spin, to more than a whole call, where they sleep; how many tokens pay for packing weights depends on
// caches and memory. Nothing tells an operator; but the results are the same whichever candidate runs.
//
// The cost of a call is its wall-clock time for a token. Interruptions only make it larger, so the faster half of the
// last eight costs is what counts; a median with its absolute deviation, which also guards against costs that are too
// small, would need more of them. What is found out is not kept after the process, and no call waits for another.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>

namespace nm_export {

// Of calls that are alike, but for their number of tokens. They may come from several threads at once.
class AutoTuner {
 public:
  static constexpr size_t kMostCandidates = 6;

  // One of `candidates`, which are 2 to kMostCandidates, the same number in every call. All of them in turn at first,
  // then the fastest, the first of them where costs are nearly the same, and now and then another one (exploration), in
  // case it has become faster.
  size_t next_candidate(size_t candidates) {
    const uint32_t call = calls_.fetch_add(1, std::memory_order_relaxed);
    if (tried_.load(std::memory_order_relaxed) < kFirstCosts * candidates) return call % candidates;
    size_t fastest = 0;
    uint64_t lowest = typical(0);
    for (size_t candidate = 1; candidate < candidates; ++candidate) {
      const uint64_t cost = typical(candidate);
      if (!is_lower(cost, lowest)) continue;
      fastest = candidate;
      lowest = cost;
    }
    const size_t other = (fastest + 1 + call / kExplorationPeriod % (candidates - 1)) % candidates;
    const uint32_t place = call % kExplorationPeriod;
    const bool explores = place == 0 || (place < kMostExplorations && is_lower(last(other), lowest));
    return explores ? other : fastest;
  }

  void notify_cost(size_t candidate, std::chrono::nanoseconds time, size_t tokens) {
    Costs& costs = costs_[candidate];
    const uint32_t count = costs.count.fetch_add(1, std::memory_order_relaxed);
    tried_.fetch_add(time < kLongCall ? 1 : kFirstCosts / 2, std::memory_order_relaxed);
    const int64_t of_token = kUnits * time.count() / static_cast<int64_t>(tokens);
    costs.units[count % kCosts].store(static_cast<uint32_t>(std::clamp<int64_t>(of_token, 0, kHighest)),
                                      std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kHighest = std::numeric_limits<uint32_t>::max();
  static constexpr int64_t kUnits = 16;  // of a nanosecond, and for one token
  static constexpr size_t kCosts = 8;
  static constexpr uint64_t kNearlySame = 32;
  static constexpr uint32_t kFirstCosts = 8;
  static constexpr std::chrono::milliseconds kLongCall{10};  // is tried just twice
  static constexpr uint32_t kExplorationPeriod = 64;
  static constexpr uint32_t kMostExplorations = 4;  // as many as make a candidate typically faster, once it was

  struct Costs {
    std::atomic<uint32_t> count{0};
    std::atomic<uint32_t> units[kCosts] = {};
  };

  static bool is_lower(uint64_t cost, uint64_t than) { return cost + cost / kNearlySame < than; }

  // The mean of the lower half of the last costs; where there is none, the highest.
  uint64_t typical(size_t candidate) const {
    const size_t count = std::min<size_t>(costs_[candidate].count.load(std::memory_order_relaxed), kCosts);
    if (count == 0) return kHighest;
    std::array<uint32_t, kCosts> costs;
    costs.fill(kHighest);
    for (size_t i = 0; i < count; ++i) costs[i] = costs_[candidate].units[i].load(std::memory_order_relaxed);
    std::sort(costs.begin(), costs.end());
    const size_t half = (count + 1) / 2;
    return std::accumulate(costs.begin(), costs.begin() + half, uint64_t{0}) / half;
  }

  uint64_t last(size_t candidate) const {
    const uint32_t count = costs_[candidate].count.load(std::memory_order_relaxed);
    return count == 0 ? kHighest : costs_[candidate].units[(count - 1) % kCosts].load(std::memory_order_relaxed);
  }

  std::atomic<uint32_t> calls_{0};
  std::atomic<uint64_t> tried_{0};
  Costs costs_[kMostCandidates];
};

// The cost of one call, from its construction to its end.
class ScopedTiming {
 public:
  ScopedTiming(AutoTuner& tuner, size_t candidates, size_t tokens)
      : tuner_(tuner), tokens_(tokens), candidate_(tuner.next_candidate(candidates)), start_(Clock::now()) {}
  ScopedTiming(const ScopedTiming&) = delete;
  ScopedTiming& operator=(const ScopedTiming&) = delete;
  ~ScopedTiming() { tuner_.notify_cost(candidate_, Clock::now() - start_, tokens_); }

  size_t candidate() const { return candidate_; }

 private:
  using Clock = std::chrono::steady_clock;
  AutoTuner& tuner_;
  const size_t tokens_;
  const size_t candidate_;
  const Clock::time_point start_;
};

}  // namespace nm_export
