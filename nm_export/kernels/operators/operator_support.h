// What the operators share: failures, and how they read their node and its tensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "isa/instruction_set.h"
#include "operators/ort_c_api.h"

namespace nm_export {

// A failure on its way to ONNX Runtime. `guarded` catches it: nothing is thrown across the C ABI.
struct Failure {
  ort::Status* status;
};

// Throws what is not null.
void check(ort::Status* status);

[[noreturn]] void fail(const ort::Api& api, ort::ErrorCode code, const std::string& message);

// Runs `body` and turns what it throws into a status. `op` is the operator's name.
template <class Body>
ort::Status* guarded(const ort::Api& api, const char* op, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ort::kRuntimeException, (std::string(op) + ": out of memory").c_str());
  } catch (...) {
    return api.CreateStatus(ort::kRuntimeException, (std::string(op) + ": unexpected failure").c_str());
  }
}

// The one that was chosen for this process's processor; fails, in the name of a node, where none can be used.
const InstructionSet& instruction_set_for(const ort::Api& api, const std::string& node);

// "NMTopK node 'name'", for messages.
std::string node_name(const ort::Api& api, const ort::KernelInfo* info, const char* op);

// An attribute in this range. Where it is missing it is `otherwise`, or an error if that is out of range.
int64_t int_attribute(const ort::Api& api, const ort::KernelInfo* info, const std::string& node, const char* name,
                      int64_t smallest, int64_t largest, int64_t otherwise = std::numeric_limits<int64_t>::min());

// The sizes of a tensor's axes, where they are: reading one allocates nothing here.
class Shape {
 public:
  static constexpr size_t kMostAxes = 16;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : rank_(sizes.size()) { std::copy(sizes.begin(), sizes.end(), sizes_); }

  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t operator[](size_t axis) const { return sizes_[axis]; }
  int64_t back() const { return sizes_[rank_ - 1]; }
  const int64_t* data() const { return sizes_; }
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + rank_; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
  bool operator!=(const Shape& other) const { return !(*this == other); }

  // The same but for the last axis.
  Shape with_last(int64_t size) const {
    Shape changed = *this;
    changed.sizes_[rank_ - 1] = size;
    return changed;
  }

 private:
  friend Shape shape_of(const ort::Api& api, const ort::Value* value, const std::string& node);

  size_t rank_ = 0;
  int64_t sizes_[kMostAxes] = {};
};

// Of a tensor of a node, which is named where the tensor has more than kMostAxes axes.
Shape shape_of(const ort::Api& api, const ort::Value* value, const std::string& node);

// "[2, 3]"
std::string shape_text(const Shape& shape);

// The inputs of a node. Shapes of constants of the model are read once, when it is opened: ONNX Runtime allocates for
// every answer.
class NodeInputs {
 public:
  NodeInputs(const ort::Api& api, const ort::KernelInfo* info, const std::string& node, size_t count);

  Shape shape(const ort::KernelContext* context, size_t index) const;
  const ort::Value* value(const ort::KernelContext* context, size_t index) const;

  // The data of an input that must have the shape [size], because, in words, `owner` = size `unit`: "x has K = 8
  // channels".
  const float* vector(const ort::KernelContext* context, size_t index, const char* name, int64_t size,
                      const char* owner, const char* unit) const;

 private:
  const ort::Api& api_;
  std::string node_;
  std::vector<std::optional<Shape>> constants_;
};

template <class T>
T* data_of(const ort::Api& api, const ort::Value* value) {
  // ONNX Runtime has one function for both uses; what it gives for an input is only read.
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  return static_cast<T*>(data);
}

// A shape during inference: -1 where an axis is not known, and its name there.
struct NamedShape {
  std::vector<int64_t> sizes;
  std::vector<const char*> names;

  // Whether every axis has a size or a name, and there is one: rank 0 also means that nothing is known.
  bool is_known() const;
};

NamedShape shape_of_input(const ort::Api& api, const ort::ShapeInferContext* context, size_t index);

// Says which element type and shape an output has.
void set_shape_of_output(const ort::Api& api, const ort::ShapeInferContext* context, size_t index,
                         ort::ElementType type, NamedShape shape);

// Buffers that are not in use now; as many are made as were ever in use at once.
template <class Buffers>
class BufferPool {
 public:
  std::unique_ptr<Buffers> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Buffers>();
    std::unique_ptr<Buffers> buffers = std::move(free_.back());
    free_.pop_back();
    return buffers;
  }
  void give_back(std::unique_ptr<Buffers> buffers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffers));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Buffers>> free_;
};

}  // namespace nm_export
