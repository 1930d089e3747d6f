// Networks of compare-exchange steps that find the n-th largest of m keys, for every group of a vector at once.
//
// The network is Batcher's odd-even merge sort (Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M),
// which sorts any number of keys, without the steps that the n-th largest key does not depend on.
#pragma once

namespace nm_export {

constexpr int kMaxGroupSize = 64;
constexpr int kMaxComparators = 543;  // of the sort of 64 keys

// After the step the larger key is at `high` and the smaller one at `low`; high < low.
struct Comparator {
  unsigned char high;
  unsigned char low;
};

struct SelectionNetwork {
  int size = 0;
  Comparator steps[kMaxComparators] = {};
};

// Steps that leave the n-th largest of m keys at position n - 1. 1 <= n <= m <= 64.
constexpr SelectionNetwork make_selection_network(int n, int m) {
  SelectionNetwork sort;
  int top = 1;
  while (top < m) top *= 2;
  top /= 2;
  for (int p = top; p > 0; p /= 2) {
    int q = top;
    int r = 0;
    int d = p;
    while (true) {
      for (int i = 0; i + d < m; ++i) {
        if ((i & p) == r) {
          sort.steps[sort.size++] = {static_cast<unsigned char>(i), static_cast<unsigned char>(i + d)};
        }
      }
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }

  bool needed[kMaxGroupSize] = {};
  needed[n - 1] = true;
  bool kept[kMaxComparators] = {};
  for (int i = sort.size - 1; i >= 0; --i) {
    const Comparator step = sort.steps[i];
    kept[i] = needed[step.high] || needed[step.low];
    if (kept[i]) needed[step.high] = needed[step.low] = true;
  }
  SelectionNetwork selection;
  for (int i = 0; i < sort.size; ++i) {
    if (kept[i]) selection.steps[selection.size++] = sort.steps[i];
  }
  return selection;
}

}  // namespace nm_export
