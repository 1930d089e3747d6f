// How memory is moved.
#pragma once

#include <cstddef>

namespace nm_export {

constexpr size_t kCacheLine = 64;  // bytes; where lines are longer, prefetches ask for some of them twice

}  // namespace nm_export
