// Many tokens: weights are packed to tiles, of which each token takes the rows of its own kept inputs.
#include "product/packed_tiles.h"

namespace nm_export {
namespace {

class PackedSparse final : public Algorithm {
 public:
  const char* name() const override { return "packed sparse"; }
  TaskLimits limits(const SparseProduct&) const override { return packed_limits(); }
  void run(const ProductCall& call, const Task& task, WorkerBuffers& buffers) const override {
    run_packed(call, task, call.kernels.add_sparse_tile, buffers);
  }
};

}  // namespace

const Algorithm& packed_sparse() {
  static constexpr PackedSparse kAlgorithm;
  return kAlgorithm;
}

}  // namespace nm_export
