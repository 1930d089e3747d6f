#include "instruction_set.h"

#include <cstdlib>
#include <cstring>

#ifdef NM_EXPORT_X86_64
#ifdef _MSC_VER
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace nm_export {
namespace {

#ifdef NM_EXPORT_X86_64

struct CpuidRegisters {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor has no such leaf. Asked directly: compilers differ in the names that
// __builtin_cpu_supports knows.
CpuidRegisters cpuid(unsigned leaf) {
  CpuidRegisters r;
#ifdef _MSC_VER
  int registers[4];
  __cpuid(registers, 0);
  if (static_cast<unsigned>(registers[0]) < leaf) return r;
  __cpuidex(registers, static_cast<int>(leaf), 0);
  r.eax = static_cast<unsigned>(registers[0]);
  r.ebx = static_cast<unsigned>(registers[1]);
  r.ecx = static_cast<unsigned>(registers[2]);
  r.edx = static_cast<unsigned>(registers[3]);
#else
  if (!__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
#endif
  return r;
}

// The register states that the operating system saves (XCR0). Only for processors with OSXSAVE.
unsigned saved_states() {
#ifdef _MSC_VER
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

constexpr bool has_bit(unsigned value, int bit) { return value >> bit & 1u; }

bool supports_avx2() {
  const CpuidRegisters basic = cpuid(1);
  const bool osxsave = has_bit(basic.ecx, 27);
  const bool f16c = has_bit(basic.ecx, 29);
  const bool fma = has_bit(basic.ecx, 12);
  constexpr unsigned kXmmAndYmm = 0x06;
  return osxsave && f16c && fma && (saved_states() & kXmmAndYmm) == kXmmAndYmm && has_bit(cpuid(7).ebx, 5);
}

bool supports_avx512() {
  const unsigned features = cpuid(7).ebx;
  const bool f = has_bit(features, 16);
  const bool dq = has_bit(features, 17);
  const bool bw = has_bit(features, 30);
  constexpr unsigned kXmmToZmm = 0xe6;
  return supports_avx2() && f && dq && bw && (saved_states() & kXmmToZmm) == kXmmToZmm;
}

bool supports_avx512vnni() { return supports_avx512() && has_bit(cpuid(7).ecx, 11); }

#endif

InstructionSet unusable(const char* name, const char* error) { return {name, nullptr, nullptr, nullptr, error}; }

}  // namespace

InstructionSet find_instruction_set(const char* name) {
  if (std::strcmp(name, "portable") == 0) {
    return {"portable", &kPortableKernels, &kPortableProducts, &kPortableIntegers, nullptr};
  }
#ifdef NM_EXPORT_X86_64
  if (std::strcmp(name, "avx2") == 0) {
    if (supports_avx2()) return {"avx2", &kAvx2Kernels, &kAvx2Products, &kAvx2Integers, nullptr};
    return unusable("avx2", "NM_EXPORT_ISA is avx2, which this processor or its operating system does not support");
  }
  if (std::strcmp(name, "avx512") == 0) {
    if (supports_avx512()) return {"avx512", &kAvx512Kernels, &kAvx512Products, &kAvx512Integers, nullptr};
    return unusable("avx512", "NM_EXPORT_ISA is avx512, which this processor or its operating system does not support");
  }
  if (std::strcmp(name, "avx512vnni") == 0) {
    if (supports_avx512vnni()) return {"avx512vnni", &kAvx512Kernels, &kAvx512Products, &kAvx512VnniIntegers, nullptr};
    return unusable("avx512vnni",
                    "NM_EXPORT_ISA is avx512vnni, which this processor or its operating system does not support");
  }
  return unusable(name, "NM_EXPORT_ISA must be portable, avx2, avx512 or avx512vnni");
#elif defined(NM_EXPORT_AARCH64)
  if (std::strcmp(name, "neon") == 0) return {"neon", &kNeonKernels, &kNeonProducts, &kPortableIntegers, nullptr};
  return unusable(name, "NM_EXPORT_ISA must be portable or neon on this kind of processor");
#else
  return unusable(name, "NM_EXPORT_ISA must be portable on this kind of processor");
#endif
}

InstructionSet choose_instruction_set() {
  const char* requested = std::getenv("NM_EXPORT_ISA");
  if (requested != nullptr && *requested != '\0') return find_instruction_set(requested);
#ifdef NM_EXPORT_X86_64
  if (supports_avx512vnni()) return find_instruction_set("avx512vnni");
  if (supports_avx512()) return find_instruction_set("avx512");
  if (supports_avx2()) return find_instruction_set("avx2");
#elif defined(NM_EXPORT_AARCH64)
  return find_instruction_set("neon");  // every such processor has it
#endif
  return find_instruction_set("portable");
}

}  // namespace nm_export
