// Prefetching along with work: what will be needed next is asked for a few cache lines at a time.
//
// There are three schedules, of one idea. PrefetchSchedule is what a task asks for of its next block of inputs: rows at
// equal distances. Of rows that are chosen by the tokens, product/prefetch_impl.h has RowPrefetchSchedule, for vectors
// of each row in turn, and RangePrefetchSchedule, for any ranges of bytes. They ask; nothing is guaranteed to arrive.
#pragma once

#include <cstddef>

#include "cache_line.h"

namespace nm_export {

// `rows` rows of `row_lines` cache lines, `stride` bytes apart.
struct PrefetchSchedule {
  const char* at;
  size_t stride;
  size_t row_lines;
  size_t rows;
  size_t line;  // of the row at `at`
  size_t lines_per_step;
};

// So many rows are packed to a tile in about the time that a token takes for the tile: a step each.
constexpr size_t kPackedRowsPerStep = 4;

}  // namespace nm_export
