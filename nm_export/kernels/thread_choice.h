// Whether a short call is done sooner by one thread or by several: measured while it runs.
//
// Waking a thread of the pool takes from one microsecond, where idle threads spin, to more than the whole call, where
// they sleep; nothing tells an operator which. The results are the same either way.
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

// Of the calls of one node, which may come from several threads at once.
class ThreadChoice {
 public:
  // Both ways in turn at first, then the faster one, and now and then the other, in case it has become faster.
  bool several() {
    const uint32_t call = calls_.fetch_add(1, std::memory_order_relaxed);
    if (call < kFirstCalls) return call % 2 == 0;
    const bool faster = typical(true) <= typical(false);
    return call % kCallsBetweenDoubts == 0 ? !faster : faster;
  }

  void took(bool several, std::chrono::nanoseconds time) {
    Times& times = times_[several ? 1 : 0];
    const uint32_t count = times.count.fetch_add(1, std::memory_order_relaxed);
    const auto nanoseconds = static_cast<uint32_t>(std::clamp<int64_t>(time.count(), 0, kLongest));
    times.nanoseconds[count % kTimes].store(nanoseconds, std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kLongest = std::numeric_limits<uint32_t>::max();
  static constexpr size_t kTimes = 8;
  static constexpr uint32_t kFirstCalls = 2 * kTimes;
  static constexpr uint32_t kCallsBetweenDoubts = 64;

  struct Times {
    std::atomic<uint32_t> count{0};
    std::atomic<uint32_t> nanoseconds[kTimes] = {};
  };

  // The mean of the shorter half, so that interrupted calls do not count; as a sum.
  uint64_t typical(bool several) const {
    std::array<uint32_t, kTimes> times;
    for (size_t i = 0; i < kTimes; ++i) times[i] = times_[several ? 1 : 0].nanoseconds[i].load(std::memory_order_relaxed);
    std::sort(times.begin(), times.end());
    return std::accumulate(times.begin(), times.begin() + kTimes / 2, uint64_t{0});
  }

  std::atomic<uint32_t> calls_{0};
  Times times_[2];
};

// One for each small number of tokens: the same product takes longer with more.
class ThreadChoices {
 public:
  static constexpr size_t kMostTokens = 8;
  ThreadChoice& of(size_t tokens) { return choices_[tokens - 1]; }

 private:
  ThreadChoice choices_[kMostTokens];
};

// The time of one call, from its construction to its end.
class TimedCall {
 public:
  explicit TimedCall(ThreadChoice& choice) : choice_(choice), several_(choice.several()), start_(Clock::now()) {}
  TimedCall(const TimedCall&) = delete;
  TimedCall& operator=(const TimedCall&) = delete;
  ~TimedCall() { choice_.took(several_, Clock::now() - start_); }

  bool several() const { return several_; }

 private:
  using Clock = std::chrono::steady_clock;
  ThreadChoice& choice_;
  const bool several_;
  const Clock::time_point start_;
};

}  // namespace nm_export
