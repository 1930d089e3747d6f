// Single numbers, and prefetches to the second-level cache, for x86-64 with F16C.
#pragma once

#include <immintrin.h>

#include "element_types.h"

namespace nm_export {
namespace {

struct HalfNumbers {
  static float one(const float* source) { return *source; }
  static float one(const Float16* source) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(source->bits))); }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
};

}  // namespace
}  // namespace nm_export
