#include "instruction_set.h"

#include <cstdlib>
#include <cstring>

#if defined(NM_EXPORT_X86_64) && defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace nm_export {
namespace {

#ifdef NM_EXPORT_X86_64
#if defined(_MSC_VER) && !defined(__clang__)

struct Features {
  bool avx2 = false;
  bool avx512 = false;
};

Features detect() {
  Features features;
  int leaf[4];
  __cpuid(leaf, 0);
  if (leaf[0] < 7) return features;
  __cpuid(leaf, 1);
  const bool xsave_by_system = leaf[2] & (1 << 27);
  const bool f16c = leaf[2] & (1 << 29);
  if (!xsave_by_system || !f16c) return features;
  const unsigned long long saved = _xgetbv(0);
  __cpuidex(leaf, 7, 0);
  features.avx2 = (saved & 0x06) == 0x06 && (leaf[1] & (1 << 5));
  constexpr int kNeeded = 1 << 16 | 1 << 17 | 1 << 30;  // F, DQ, BW
  features.avx512 = features.avx2 && (saved & 0xe6) == 0xe6 && (leaf[1] & kNeeded) == kNeeded;
  return features;
}

bool supports_avx2() { return detect().avx2; }
bool supports_avx512() { return detect().avx512; }

#else

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool supports_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }
bool supports_avx512() {
  return supports_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq");
}

#endif
#endif

}  // namespace

InstructionSet find_instruction_set(const char* name) {
  if (std::strcmp(name, "portable") == 0) return {"portable", &kPortableKernels, nullptr};
#ifdef NM_EXPORT_X86_64
  if (std::strcmp(name, "avx2") == 0) {
    if (supports_avx2()) return {"avx2", &kAvx2Kernels, nullptr};
    return {"avx2", nullptr, "NM_EXPORT_ISA is avx2, which this processor or its operating system does not support"};
  }
  if (std::strcmp(name, "avx512") == 0) {
    if (supports_avx512()) return {"avx512", &kAvx512Kernels, nullptr};
    return {"avx512", nullptr,
            "NM_EXPORT_ISA is avx512, which this processor or its operating system does not support"};
  }
  return {name, nullptr, "NM_EXPORT_ISA must be portable, avx2 or avx512"};
#else
  return {name, nullptr, "NM_EXPORT_ISA must be portable on this kind of processor"};
#endif
}

InstructionSet choose_instruction_set() {
  const char* requested = std::getenv("NM_EXPORT_ISA");
  if (requested != nullptr && *requested != '\0') return find_instruction_set(requested);
#ifdef NM_EXPORT_X86_64
  if (supports_avx512()) return find_instruction_set("avx512");
  if (supports_avx2()) return find_instruction_set("avx2");
#endif
  return find_instruction_set("portable");
}

}  // namespace nm_export
