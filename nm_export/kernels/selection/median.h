// The median of a token.
#pragma once

#include <cstddef>

#include "selection/selection_kernels.h"

namespace nm_export {

// Element (channels - 1) / 2 of the ascending order of v; NaN if v holds a NaN. channels >= 1. Allocates nothing.
float median(const SelectionKernels& kernels, const float* v, size_t channels);

}  // namespace nm_export
