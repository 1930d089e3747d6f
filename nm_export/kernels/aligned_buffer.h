// Numbers that begin at a cache line.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "cache_line.h"

namespace nm_export {

template <class T>
class AlignedBuffer {
 public:
  // Room for `count` numbers, whose contents are arbitrary. Allocates only to grow; throws std::bad_alloc.
  T* reserve(size_t count) {
    if (count > capacity_) {
      capacity_ = 0;
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
      capacity_ = count;
    }
    return data_.get();
  }

  // What was reserved last; null where nothing was.
  const T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{kCacheLine};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace nm_export
