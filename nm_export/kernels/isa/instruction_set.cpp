#include "isa/instruction_set.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "isa/tables.h"

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

bool supports_any() { return true; }

// The widest first: the first one that is supported is chosen.
constexpr InstructionSet kInstructionSets[] = {
#ifdef NM_EXPORT_X86_64
    {"avx512vnni", supports_avx512vnni, &kAvx512Selection, &kAvx512Products, &kAvx512VnniInt8},
    {"avx512", supports_avx512, &kAvx512Selection, &kAvx512Products, &kAvx512Int8},
    {"avx2", supports_avx2, &kAvx2Selection, &kAvx2Products, &kAvx2Int8},
#endif
#ifdef NM_EXPORT_AARCH64
    {"neon", supports_any, &kNeonSelection, &kNeonProducts, &kPortableInt8},  // every such processor has it
#endif
    {"portable", supports_any, &kPortableSelection, &kPortableProducts, &kPortableInt8},
};
constexpr size_t kCount = sizeof kInstructionSets / sizeof *kInstructionSets;

const InstructionSet* built_in(const char* name) {
  for (const InstructionSet& set : kInstructionSets) {
    if (std::strcmp(set.name, name) == 0) return &set;
  }
  return nullptr;
}

// "portable, avx2 or avx512"
std::string names() {
  std::string text;
  for (size_t i = kCount; i > 0; --i) {
    text += kInstructionSets[i - 1].name;
    if (i > 1) text += i > 2 ? ", " : " or ";
  }
  return text;
}

}  // namespace

const InstructionSet* find_instruction_set(const char* name) {
  const InstructionSet* set = built_in(name);
  return set != nullptr && set->is_supported() ? set : nullptr;
}

std::vector<const InstructionSet*> supported_instruction_sets() {
  std::vector<const InstructionSet*> sets;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.is_supported()) sets.push_back(&set);
  }
  return sets;
}

InstructionSetChoice choose_instruction_set() {
  const char* requested = std::getenv("NM_EXPORT_ISA");
  if (requested == nullptr || *requested == '\0') {
    const InstructionSet* widest = kInstructionSets;
    while (!widest->is_supported()) ++widest;  // the last one is portable
    return {widest, ""};
  }
  const InstructionSet* set = built_in(requested);
  if (set == nullptr) return {nullptr, "NM_EXPORT_ISA must be " + names() + " on this kind of processor"};
  if (set->is_supported()) return {set, ""};
  return {nullptr, std::string("NM_EXPORT_ISA is ") + set->name +
                       ", which this processor or its operating system does not support"};
}

}  // namespace nm_export
