// IEEE subnormals for the length of a scope.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace nm_export {

// A thread of the host may flush subnormals to zero, which would turn small scores into ties.
class StrictFloats {
 public:
  StrictFloats(const StrictFloats&) = delete;
  StrictFloats& operator=(const StrictFloats&) = delete;

#if defined(__x86_64__) || defined(_M_X64)
  StrictFloats() : control_(_mm_getcsr()) { _mm_setcsr(kIeeeControl); }
  ~StrictFloats() { _mm_setcsr(control_); }

 private:
  static constexpr unsigned kIeeeControl = 0x1f80;  // exceptions masked, round to nearest, no flushing
  unsigned control_;
#else
  StrictFloats() {
    std::fegetenv(&environment_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~StrictFloats() { std::fesetenv(&environment_); }

 private:
  std::fenv_t environment_;
#endif
};

}  // namespace nm_export
