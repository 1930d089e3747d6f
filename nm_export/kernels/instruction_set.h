// The choice of row kernels for the processor that runs this process.
#pragma once

#include "integer_kernels.h"
#include "product_kernels.h"
#include "row_kernels.h"

namespace nm_export {

struct InstructionSet {
  const char* name;                // portable, avx2, avx512, avx512vnni or neon
  const RowKernels* kernels;       // null where `error` is set
  const ProductKernels* products;  // null where `error` is set
  const IntegerKernels* integers;  // null where `error` is set
  const char* error;               // why the requested one cannot be used
};

// The widest instruction set that processor and operating system support, or the one that the environment variable
// NM_EXPORT_ISA names. Reads the environment on every call.
InstructionSet choose_instruction_set();

// An instruction set by its name; `kernels` is null when it is unknown, not built in or not supported here.
InstructionSet find_instruction_set(const char* name);

}  // namespace nm_export
