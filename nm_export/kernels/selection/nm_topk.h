// N:M selection with shift and variance correction for rows of tokens: docs/semantics.md without ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "element_types.h"
#include "selection/selection_kernels.h"

namespace nm_export {

enum class ShiftMode { kStatic = 0, kDynamicMean = 1, kDynamicMedian = 2 };

struct NMTopKParameters {
  int n;
  int m;
  ShiftMode shift_mode;
  bool variance_correction;
  // Whether a group holds the channels g, g + K/m, g + 2 K/m, ... instead of m neighbours.
  bool strided = false;
};

// Buffers of one worker, kept between calls.
struct Workspace {
  std::vector<float> shifted;
  std::vector<float> pruned;
  std::vector<float> grouped;
  std::vector<float> grouped_values;
  std::vector<float> grouped_score;
  std::vector<float> grouped_shift;
  std::vector<int32_t> keys;
};

// What is the same for every token of every call. 1 <= n <= m. Groups of up to kMaxGroupSize channels are selected
// side by side, larger ones one after the other.
class NMTopK {
 public:
  NMTopK(const NMTopKParameters& parameters, const SelectionKernels& kernels);

  // Prunes `tokens` rows of `channels` numbers, or only shifts them when `pruned` is false. `channels` is a positive
  // multiple of m; score has `channels` numbers; shift is ignored when it is dynamic; token_shift has `tokens` numbers,
  // or is null.
  // T: float, Float16 or BFloat16. Throws std::bad_alloc when the workspace cannot grow.
  template <class T>
  void run(const T* x, const float* score, Shift shift, size_t tokens, size_t channels, bool pruned,
           Workspace& workspace, T* values, float* token_shift) const;

  // mask[j] = 1 where channel j is kept of its neighbours, else 0. Scores are not negative. Throws as `run` does.
  void keep_mask(const float* scores, size_t tokens, size_t channels, Workspace& workspace, uint8_t* mask) const;

  const NMTopKParameters& parameters() const { return parameters_; }

 private:
  template <class T>
  float run_token(const T* x, const float* score, Shift shift, size_t channels, bool pruned, Workspace& workspace,
                  T* values) const;
  void prune(const float* x, const float* score, Shift shift, size_t channels, Workspace& workspace,
             float* values) const;
  void keep_mask_of_token(const float* scores, size_t channels, Workspace& workspace, uint8_t* mask) const;
  float variance_ratio(const float* z, const float* p, size_t channels) const;

  NMTopKParameters parameters_;
  bool has_large_groups_;
  Pattern pattern_;
  const SelectionKernels& kernels_;
};

}  // namespace nm_export
