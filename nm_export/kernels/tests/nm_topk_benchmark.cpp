// Nanoseconds per element of NMTopK on one thread, beside memcpy. Medians of many runs.
//
// Usage: nm_topk_benchmark [tokens] [channels] [instruction set] [setting]   (all of both by default; the counters of
// `perf stat` are then of one kernel, but for some milliseconds)

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "isa/instruction_set.h"
#include "selection/nm_topk.h"

namespace {

using namespace nm_export;

template <class Body>
double median_nanoseconds(size_t elements, Body body) {
  std::vector<double> times;
  double total = 0;
  while (times.size() < 21 || (total < 2e8 && times.size() < 20000)) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
    times.push_back(elapsed.count() / static_cast<double>(elements));
    total += elapsed.count();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const size_t tokens = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 128;
  const size_t channels = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 4096;
  const char* const only_isa = argc > 3 ? argv[3] : nullptr;
  const char* const only_setting = argc > 4 ? argv[4] : nullptr;
  std::mt19937 random(0);
  std::vector<float> x(tokens * channels), values(tokens * channels), score(channels, 1.0f), shift(channels, 0.0f);
  std::vector<float> token_shift(tokens);
  for (float& value : x) value = std::normal_distribution<float>()(random);
  std::printf("%zu tokens of %zu channels, ns per element\nmemcpy %.3f\n", tokens, channels,
              median_nanoseconds(x.size(), [&] { std::memcpy(values.data(), x.data(), x.size() * sizeof(float)); }));

  struct Setting {
    const char* name;
    NMTopKParameters parameters;
  };
  const int all = static_cast<int>(channels);
  const Setting settings[] = {
      {"2:4", {2, 4, ShiftMode::kStatic, false}},
      {"4:8", {4, 8, ShiftMode::kStatic, false}},
      {"8:16", {8, 16, ShiftMode::kStatic, false}},
      {"16:32", {16, 32, ShiftMode::kStatic, false}},
      {"32:64", {32, 64, ShiftMode::kStatic, false}},
      {"5:16", {5, 16, ShiftMode::kStatic, false}},
      {"8:16 mean", {8, 16, ShiftMode::kDynamicMean, false}},
      {"8:16 median", {8, 16, ShiftMode::kDynamicMedian, false}},
      {"8:16 variance", {8, 16, ShiftMode::kStatic, true}},
      {"half of all", {(all + 1) / 2, all, ShiftMode::kStatic, false}},
      {"tenth of all", {(all + 9) / 10, all, ShiftMode::kStatic, false}},
  };
  for (const InstructionSet* isa : supported_instruction_sets()) {
    if (only_isa != nullptr && std::strcmp(isa->name, only_isa) != 0) continue;
    for (const Setting& setting : settings) {
      if (channels % static_cast<size_t>(setting.parameters.m) != 0) continue;
      if (only_setting != nullptr && std::strcmp(setting.name, only_setting) != 0) continue;
      const NMTopK nm_topk(setting.parameters, *isa->selection);
      Workspace workspace;
      const double time = median_nanoseconds(x.size(), [&] {
        nm_topk.run(x.data(), score.data(), Shift{shift.data(), 0.0f}, tokens, channels, true, workspace, values.data(),
                    token_shift.data());
      });
      std::printf("%-9s %-14s %.3f\n", isa->name, setting.name, time);
    }
  }
}
