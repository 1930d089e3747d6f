// Many tokens that keep nearly everything: weights are packed to tiles, of which all tokens take all rows.
#include "product/packed_tiles.h"

namespace nm_export {
namespace {

class PackedDense final : public Algorithm {
 public:
  const char* name() const override { return "packed dense"; }
  TaskLimits limits(const SparseProduct&) const override { return packed_limits(); }
  void run(const ProductCall& call, const Task& task, WorkerBuffers& buffers) const override {
    run_packed(call, task, call.kernels.add_dense_tile, buffers);
  }
};

}  // namespace

const Algorithm& packed_dense() {
  static constexpr PackedDense kAlgorithm;
  return kAlgorithm;
}

}  // namespace nm_export
