// The loops of product/prefetch.h, over a vector class V of which only `prefetch` is used.
#pragma once

#include <stdint.h>

#include "product/prefetch.h"

namespace nm_export {
namespace {

// So many lines of a row are asked for together: one page of the memory after the other. bfloat16 rows of 8 KB came a
// tenth faster so than line by line, and by 16 lines rows of 2 KB slower.
constexpr size_t kLinesAtOnce = 4;

// V whose prefetches are for the first-level cache.
template <class V>
struct NearPrefetch {
  static void prefetch(const void* at) { V::prefetch_near(at); }
};

template <class V>
void prefetch_step(PrefetchSchedule& next) {
  for (size_t i = 0; i < next.lines_per_step && next.rows > 0; ++i) {
    V::prefetch(next.at + next.line * kCacheLine);
    if (++next.line == next.row_lines) {
      next.line = 0;
      next.at += next.stride;
      --next.rows;
    }
  }
}

// The outputs [output, output + outputs) of `count` rows, evenly over `steps` steps.
template <class Stored>
struct RowPrefetchSchedule {
  const Stored* const* rows;
  size_t count;
  size_t output;
  size_t outputs;
  size_t steps;
  size_t done;
};

template <class V, class Stored>
void prefetch_rows(RowPrefetchSchedule<Stored>& next, size_t step) {
  for (; next.done * next.steps < next.count * step; ++next.done) {
    const Stored* row = next.rows[next.done] + next.output;
    for (size_t c = 0; c < next.outputs; c += kCacheLine / sizeof(Stored)) V::prefetch(row + c);
  }
}

struct PrefetchRange {
  const char* at;
  size_t lines;
};

// The cache lines of `bytes` bytes.
inline PrefetchRange prefetch_range(const void* at, size_t bytes) {
  const auto* first = static_cast<const char*>(at);
  first -= reinterpret_cast<uintptr_t>(first) % kCacheLine;
  const auto* end = static_cast<const char*>(at) + bytes;
  return {first, (static_cast<size_t>(end - first) + kCacheLine - 1) / kCacheLine};
}

// Ranges, one line after the other, evenly over the steps of a call. Loops work with a copy of it: kept in registers it
// takes a cycle for each line, and in memory eight.
template <class V>
class RangePrefetchSchedule {
 public:
  RangePrefetchSchedule(const PrefetchRange* ranges, size_t count, size_t steps) : next_(ranges), end_(ranges + count) {
    size_t lines = 0;
    for (size_t i = 0; i < count; ++i) lines += ranges[i].lines;
    per_step_ = (lines + steps - 1) / steps;
  }
  void step() {
    for (size_t i = 0; i < per_step_; ++i) {
      if (lines_ == 0) {
        if (next_ == end_) return;
        at_ = next_->at;
        lines_ = next_->lines;
        ++next_;
      }
      V::prefetch(at_);
      at_ += kCacheLine;
      --lines_;
    }
  }

 private:
  const char* at_ = nullptr;
  size_t lines_ = 0;
  const PrefetchRange* next_;
  const PrefetchRange* end_;
  size_t per_step_;
};

}  // namespace
}  // namespace nm_export
