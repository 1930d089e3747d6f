// What an operator sees of ONNX Runtime, without ONNX Runtime: tensors, attributes, and a ParallelFor on threads of its
// own. For tests under sanitizers that ONNX Runtime is not built with. Every result is in buffers of its exact size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "operators/ort_c_api.h"

namespace nm_export::stand_in {

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;
};

// A node of a session: an operator with its attributes. Any number of threads may run it at once.
class Node {
 public:
  // Of the operator `name` whose first two inputs have these element types. Aborts when there is none or it is refused.
  Node(const char* name, ort::ElementType first, ort::ElementType second, std::map<std::string, int64_t> attributes);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Computes the outputs of one run. Aborts when the operator fails.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) const;

 private:
  const ort::CustomOp* op_;
  void* kernel_ = nullptr;
};

}  // namespace nm_export::stand_in
