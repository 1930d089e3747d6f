// The choice follows the times that it is told.
#include "thread_choice.h"

#include <cstdio>
#include <cstdlib>

namespace {

using nm_export::ThreadChoice;
using std::chrono::nanoseconds;

// Share of calls, in percent, by several threads.
int calls(ThreadChoice& choice, int count, nanoseconds by_one, nanoseconds by_several) {
  int several = 0;
  for (int i = 0; i < count; ++i) {
    const bool chosen = choice.several();
    several += chosen ? 1 : 0;
    const bool interrupted = i % 5 == 0;
    choice.took(chosen, (chosen ? by_several : by_one) + nanoseconds(interrupted ? 1000000 : 0));
  }
  return several * 100 / count;
}

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  ThreadChoice choice;
  const int first = calls(choice, 16, nanoseconds(90000), nanoseconds(100000));
  expect(first == 50, "at first both ways in turn");
  expect(calls(choice, 1000, nanoseconds(90000), nanoseconds(100000)) <= 2, "one thread is faster");
  calls(choice, 1000, nanoseconds(90000), nanoseconds(60000));
  expect(calls(choice, 1000, nanoseconds(90000), nanoseconds(60000)) >= 98, "several have become faster");
}
