// Working memory that is kept between calls.
#pragma once

#include <cstddef>

#include "aligned_buffer.h"

namespace nm_export {

// A few buffers, which users number as they like and fill with whatever they like: contents do not survive to the next
// user. They grow to the largest use and then allocate nothing.
class Scratch {
 public:
  // Room for `count` numbers at the start of a cache line. Throws std::bad_alloc.
  template <class T>
  T* reserve(size_t buffer, size_t count) {
    return reinterpret_cast<T*>(buffers_[buffer].reserve(count * sizeof(T)));
  }

  // What was reserved last.
  template <class T>
  const T* data(size_t buffer) const {
    return reinterpret_cast<const T*>(buffers_[buffer].data());
  }

 private:
  AlignedBuffer<unsigned char> buffers_[8];
};

// Of one call, and of one worker of it.
struct CallBuffers {
  AlignedBuffer<float> split_sums;
  Scratch algorithm;
};
using WorkerBuffers = Scratch;

}  // namespace nm_export
