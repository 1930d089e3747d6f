// The choice follows the table of instruction sets and the environment.
#include "isa/instruction_set.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using namespace nm_export;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

void set_environment(const char* value) {
#ifdef _WIN32
  _putenv_s("NM_EXPORT_ISA", value);
#else
  setenv("NM_EXPORT_ISA", value, 1);
#endif
}

}  // namespace

int main() {
  const std::vector<const InstructionSet*> sets = supported_instruction_sets();
  expect(std::string(sets.back()->name) == "portable", "every processor runs the portable loops");
  set_environment("");
  expect(choose_instruction_set().set == sets.front(), "the widest one is chosen");
  for (const InstructionSet* set : sets) {
    set_environment(set->name);
    expect(choose_instruction_set().set == set, "the one that is asked for is chosen");
    expect(find_instruction_set(set->name) == set, "the one that is asked for is found");
    expect(set->selection != nullptr && set->products != nullptr && set->int8 != nullptr, "a set has all its tables");
  }
  set_environment("sse9");
  const InstructionSetChoice none = choose_instruction_set();
  expect(none.set == nullptr && find_instruction_set("sse9") == nullptr, "an unknown one is not chosen");
  expect(none.error.rfind("NM_EXPORT_ISA must be portable", 0) == 0, "the message begins with what is possible");
  for (const InstructionSet* set : sets) {
    expect(none.error.find(set->name) != std::string::npos, "the message names every set");
  }
}
