// Few tokens: the rows of kept channels are added where they lie.
#include <algorithm>
#include <bitset>

#include "sparse_matmul.h"

namespace nm_export {

void SparseMatMul::list_rows(CallBuffers& buffers) {
  lists_per_block_ = product_.tokens == 1 ? 1 : product_.tokens + 1;
  uint32_t* const rows = buffers.rows.reserve(lists_per_block_ * product_.channels);
  float* const values = buffers.row_values.reserve(lists_per_block_ * product_.channels);
  size_t* const ends = buffers.row_ends.reserve(lists_per_block_ * blocks_ + 1);
  size_t count = 0;
  size_t lists = 0;
  ends[lists++] = 0;
  for (size_t first = 0; first < product_.channels; first += kBlockChannels) {
    const size_t channels = std::min(kBlockChannels, product_.channels - first);
    uint64_t any = 0;
    for (size_t t = 0; t < product_.tokens; ++t) {
      const float* v = product_.values + t * product_.channels + first;
      const uint64_t mask = kernels_.compact(v, channels, first, rows + count, values + count);
      any |= mask;
      count += std::bitset<kBlockChannels>(mask).count();
      ends[lists++] = count;
    }
    if (product_.tokens == 1) continue;
    for (size_t k = 0; k < channels; ++k) {
      if (any >> k & 1u) rows[count++] = static_cast<uint32_t>(first + k);
    }
    ends[lists++] = count;
  }
  rows_ = rows;
  row_values_ = values;
  row_ends_ = ends;
}

Rows SparseMatMul::rows_of(size_t block, size_t token) const {
  const size_t* ends = row_ends_ + block * lists_per_block_ + token;
  return {rows_ + ends[0], row_values_ + ends[0], ends[1] - ends[0]};
}

Rows SparseMatMul::rows_of_any_token(size_t block) const {
  if (block >= blocks_) return {nullptr, nullptr, 0};
  return rows_of(block, lists_per_block_ - 1);
}

void SparseMatMul::add_rows(const Task& task) const {
  const WeightType type = product_.weight.type;
  const bool rounds = product_.may_round && type >= WeightType::kUInt8;
  const auto add = rounds ? integers_.add_rows[code_type()] : kernels_.add_rows[static_cast<size_t>(type)];
  start_sums(task);
  if (product_.tokens == 1 && type >= WeightType::kUInt8) {
    add_groups(task, add);
  } else {
    add_blocks(task, add);
  }
  end_sums(task);
}

void SparseMatMul::add_blocks(const Task& task, AddRows add) const {
  const size_t stride = product_.weight.columns;
  float* const y = sums_of(task);
  for (size_t block = task.first_block; block < task.end_block; ++block) {
    const Rows next = rows_of_any_token(block + 1);  // behind the last one too: there a worker's next task begins
    for (size_t t = 0; t < task.tokens; ++t) {
      const size_t start = next.count * t / task.tokens;
      const Rows share{next.row + start, nullptr, next.count * (t + 1) / task.tokens - start};
      add(product_.weight, task.first_column, rows_of(block, t), share, task.columns, y + t * stride);
    }
  }
}

// One token, codes: by groups of channels that share scales, so that the rows of one and of the next, which are
// prefetched, fit the first-level cache.
void SparseMatMul::add_groups(const Task& task, AddRows add) const {
  const size_t size = std::min(product_.weight.block_size, kBlockChannels);
  const Rows first = rows_of(task.first_block, 0);
  const Rows last = rows_of(task.end_block - 1, 0);
  const uint32_t* const end = last.row + last.count;
  const auto group_from = [&](const uint32_t* row) {
    Rows group{row, first.value + (row - first.row), 0};
    while (row + group.count < end && row[group.count] / size == *row / size) ++group.count;
    return group;
  };
  float* const y = sums_of(task);
  for (Rows group = group_from(first.row); group.count > 0;) {
    const Rows next = group_from(group.row + group.count);
    add(product_.weight, task.first_column, group, next, task.columns, y);
    group = next;
  }
}

}  // namespace nm_export
