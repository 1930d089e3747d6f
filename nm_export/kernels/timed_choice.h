// Which of several ways to do the same is fastest: measured while they are used.
//
// What is fastest depends on the machine and on what else it does. Waking a thread takes from one microsecond, where
// idle threads spin, to more than a whole call, where they sleep; how many tokens pay for packing weights depends on
// caches and memory. Nothing tells an operator; but the results are the same in every way.
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
class TimedChoice {
 public:
  static constexpr size_t kMostWays = 6;

  // One of `ways`, which are 2 to kMostWays, the same number in every call. All of them in turn at first, then the
  // fastest, the first of them where times are nearly the same, and now and then another one, in case it has become
  // faster.
  size_t choose(size_t ways) {
    const uint32_t call = calls_.fetch_add(1, std::memory_order_relaxed);
    if (tried_.load(std::memory_order_relaxed) < kFirstTimes * ways) return call % ways;
    size_t fastest = 0;
    uint64_t shortest = typical(0);
    for (size_t way = 1; way < ways; ++way) {
      const uint64_t time = typical(way);
      if (!is_shorter(time, shortest)) continue;
      fastest = way;
      shortest = time;
    }
    const size_t other = (fastest + 1 + call / kCallsBetweenDoubts % (ways - 1)) % ways;
    const uint32_t place = call % kCallsBetweenDoubts;
    const bool doubts = place == 0 || (place < kMostDoubts && is_shorter(last(other), shortest));
    return doubts ? other : fastest;
  }

  void took(size_t way, std::chrono::nanoseconds time, size_t tokens) {
    Times& times = times_[way];
    const uint32_t count = times.count.fetch_add(1, std::memory_order_relaxed);
    tried_.fetch_add(time < kLongCall ? 1 : kFirstTimes / 2, std::memory_order_relaxed);
    const int64_t of_token = kUnits * time.count() / static_cast<int64_t>(tokens);
    times.units[count % kTimes].store(static_cast<uint32_t>(std::clamp<int64_t>(of_token, 0, kLongest)),
                                      std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kLongest = std::numeric_limits<uint32_t>::max();
  static constexpr int64_t kUnits = 16;  // of a nanosecond, and for one token
  static constexpr size_t kTimes = 8;
  static constexpr uint64_t kNearlySame = 32;
  static constexpr uint32_t kFirstTimes = 8;
  static constexpr std::chrono::milliseconds kLongCall{10};  // is tried just twice
  static constexpr uint32_t kCallsBetweenDoubts = 64;
  static constexpr uint32_t kMostDoubts = 4;  // as many times as make a way typically faster, once it was

  struct Times {
    std::atomic<uint32_t> count{0};
    std::atomic<uint32_t> units[kTimes] = {};
  };

  static bool is_shorter(uint64_t time, uint64_t than) { return time + time / kNearlySame < than; }

  // The mean of the shorter half of the last times, so that interrupted calls do not count; where there is none, the
  // longest time.
  uint64_t typical(size_t way) const {
    const size_t count = std::min<size_t>(times_[way].count.load(std::memory_order_relaxed), kTimes);
    if (count == 0) return kLongest;
    std::array<uint32_t, kTimes> times;
    times.fill(kLongest);
    for (size_t i = 0; i < count; ++i) times[i] = times_[way].units[i].load(std::memory_order_relaxed);
    std::sort(times.begin(), times.end());
    const size_t half = (count + 1) / 2;
    return std::accumulate(times.begin(), times.begin() + half, uint64_t{0}) / half;
  }

  uint64_t last(size_t way) const {
    const uint32_t count = times_[way].count.load(std::memory_order_relaxed);
    return count == 0 ? kLongest : times_[way].units[(count - 1) % kTimes].load(std::memory_order_relaxed);
  }

  std::atomic<uint32_t> calls_{0};
  std::atomic<uint64_t> tried_{0};
  Times times_[kMostWays];
};

// The time of one call, from its construction to its end.
class TimedCall {
 public:
  TimedCall(TimedChoice& choice, size_t ways, size_t tokens)
      : choice_(choice), tokens_(tokens), way_(choice.choose(ways)), start_(Clock::now()) {}
  TimedCall(const TimedCall&) = delete;
  TimedCall& operator=(const TimedCall&) = delete;
  ~TimedCall() { choice_.took(way_, Clock::now() - start_, tokens_); }

  size_t way() const { return way_; }

 private:
  using Clock = std::chrono::steady_clock;
  TimedChoice& choice_;
  const size_t tokens_;
  const size_t way_;
  const Clock::time_point start_;
};

}  // namespace nm_export
