// N:M selection with shift and variance correction for rows of tokens: docs/semantics.md without ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "element_types.h"
#include "row_kernels.h"

namespace nm_export {

enum class ShiftMode { kStatic = 0, kDynamicMean = 1, kDynamicMedian = 2 };

struct NMTopKParameters {
  int n;
  int m;
  ShiftMode shift_mode;
  bool variance_correction;
};

// Float32 buffers of one worker, kept between calls.
struct Workspace {
  std::vector<float> shifted;
  std::vector<float> pruned;
};

// What is the same for every token of every call. 1 <= n <= m <= kMaxGroupSize.
class NMTopK {
 public:
  NMTopK(const NMTopKParameters& parameters, const RowKernels& kernels);

  // Prunes `tokens` rows of `channels` numbers, or only shifts them when `pruned` is false. `channels` is a positive
  // multiple of m; score has `channels` numbers; shift is ignored when it is dynamic; token_shift has `tokens` numbers,
  // or is null.
  // T: float, Float16 or BFloat16. Throws std::bad_alloc when the workspace cannot grow.
  template <class T>
  void run(const T* x, const float* score, Shift shift, size_t tokens, size_t channels, bool pruned,
           Workspace& workspace, T* values, float* token_shift) const;

  // mask[j] = 1 where a channel is kept, else 0. scores: as many rows, not negative.
  void keep_mask(const float* scores, size_t tokens, size_t channels, uint8_t* mask) const;

  const NMTopKParameters& parameters() const { return parameters_; }

 private:
  template <class T>
  float run_token(const T* x, const float* score, Shift shift, size_t channels, bool pruned, Workspace& workspace,
                  T* values) const;
  float variance_ratio(const float* z, const float* p, size_t channels) const;

  NMTopKParameters parameters_;
  Pattern pattern_;
  const RowKernels& kernels_;
};

}  // namespace nm_export
