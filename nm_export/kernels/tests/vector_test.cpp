// Holds the vector class of one instruction set to isa/vector_concept.h. Compiled for every processor, so that it can
// say that this one lacks the instruction set; tests/vector_checks.cpp is compiled with its flags.

#include <cstdio>

#include "isa/instruction_set.h"

int vector_checks();  // how many failed

int main() {
  if (nm_export::find_instruction_set(INSTRUCTION_SET) == nullptr) {
    std::printf("%s: not on this processor\n", INSTRUCTION_SET);
    return 0;
  }
  const int failed = vector_checks();
  std::printf("%s: %d failed\n", INSTRUCTION_SET, failed);
  return failed == 0 ? 0 : 1;
}
