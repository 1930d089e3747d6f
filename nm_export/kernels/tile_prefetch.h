// What the kernels of plain and of quantized weights share: the width of a tile, and how prefetches go along with work.
#pragma once

#include "product_kernels.h"

namespace nm_export {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kTileVectors = 8;  // as many sums as hide the latency of multiply-add, and few enough registers

// So many lines of a row are asked for together: one page of the memory after the other. bfloat16 rows of 8 KB came a
// tenth faster so than line by line, and by 16 lines rows of 2 KB slower.
constexpr size_t kLinesAtOnce = 4;

template <class Lanes>
void prefetch_step(Prefetch& next) {
  for (size_t i = 0; i < next.lines_per_step && next.rows > 0; ++i) {
    Lanes::prefetch(next.at + next.line * kCacheLine);
    if (++next.line == next.row_lines) {
      next.line = 0;
      next.at += next.stride;
      --next.rows;
    }
  }
}

}  // namespace
}  // namespace nm_export
