// Numbers of sixteen bits, by their bits.
#pragma once

#include <cstdint>

namespace nm_export {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace nm_export
