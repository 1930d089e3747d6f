// The tuner follows the costs that it is told.
#include "product/auto_tuner.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace {

using nm_export::AutoTuner;
using std::chrono::nanoseconds;

using Times = std::array<nanoseconds, 3>;

// Calls of 1 to 3 tokens by each candidate, in percent. Every fifth is interrupted.
std::array<int, 3> shares(AutoTuner& tuner, int count, const Times& of_token) {
  std::array<int, 3> calls{};
  for (int i = 0; i < count; ++i) {
    const size_t tokens = 1 + static_cast<size_t>(i) % 3;
    const size_t candidate = tuner.next_candidate(of_token.size());
    ++calls[candidate];
    tuner.notify_cost(candidate, of_token[candidate] * tokens + nanoseconds(i % 5 == 0 ? 1000000 : 0), tokens);
  }
  for (int& number : calls) number = number * 100 / count;
  return calls;
}

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  AutoTuner tuner;
  const Times second_is_fastest = {nanoseconds(90000), nanoseconds(60000), nanoseconds(70000)};
  expect(shares(tuner, 24, second_is_fastest) == std::array<int, 3>{33, 33, 33}, "at first all candidates in turn");
  expect(shares(tuner, 1000, second_is_fastest)[1] >= 98, "the second is fastest");
  const Times third_is_fastest = {nanoseconds(90000), nanoseconds(60000), nanoseconds(50000)};
  shares(tuner, 384, third_is_fastest);
  expect(shares(tuner, 1000, third_is_fastest)[2] >= 98, "the third has become fastest");

  AutoTuner patient;
  const Times long_times = {nanoseconds(90000000), nanoseconds(60000000), nanoseconds(70000000)};
  expect(shares(patient, 6, long_times) == std::array<int, 3>{33, 33, 33}, "long calls are tried in turn");
  expect(shares(patient, 50, long_times)[1] == 100, "but not often");

  AutoTuner same;
  const Times nearly_same = {nanoseconds(90000), nanoseconds(89000), nanoseconds(91000)};
  shares(same, 24, nearly_same);
  expect(shares(same, 1000, nearly_same)[0] >= 98, "the first where times are nearly the same");

  AutoTuner unfinished;
  for (int i = 0; i < 1000; ++i) unfinished.next_candidate(2);  // as if all calls were still running
}
