// The instruction sets that this library is built with, and the choice of one for the processor that runs this process.
#pragma once

#include <string>
#include <vector>

#include "product/int8_kernels.h"
#include "product/product_kernels.h"
#include "selection/selection_kernels.h"

namespace nm_export {

struct InstructionSet {
  const char* name;
  bool (*is_supported)();  // by this processor and its operating system
  const SelectionKernels* selection;
  const ProductKernels* products;
  const Int8Kernels* int8;
};

// One that is built in and supported here, or null and the reason, a sentence.
struct InstructionSetChoice {
  const InstructionSet* set;
  std::string error;
};

// The widest instruction set that processor and operating system support, or the one that the environment variable
// NM_EXPORT_ISA names. Reads the environment on every call.
InstructionSetChoice choose_instruction_set();

// The instruction set of this name; null where it is unknown, not built in or not supported here.
const InstructionSet* find_instruction_set(const char* name);

// All that are supported here, the widest first.
std::vector<const InstructionSet*> supported_instruction_sets();

}  // namespace nm_export
