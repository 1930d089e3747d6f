// Drives the arithmetic without ONNX Runtime: every instruction set of this machine against a plain statement of the
// selection rules. Buffers have their exact size, so that a sanitizer sees every step outside.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "isa/instruction_set.h"
#include "isa/tables.h"
#include "selection/median.h"
#include "selection/nm_topk.h"
#include "selection/selection_network.h"

namespace {

using namespace nm_export;

[[noreturn]] void fail(const char* what, const char* isa, int n, int m, size_t channels) {
  std::fprintf(stderr, "%s: wrong with %s, n = %d, m = %d, K = %zu\n", what, isa, n, m, channels);
  std::exit(1);
}

// By the 0-1 principle a network selects from all inputs if it does so from zeros and ones.
void test_networks() {
  for (int m = 1; m <= 12; ++m) {
    for (int n = 1; n <= m; ++n) {
      const SelectionNetwork network = make_selection_network(n, m);
      for (unsigned input = 0; input < 1u << m; ++input) {
        unsigned keys = input;
        int ones = 0;
        for (int c = 0; c < m; ++c) ones += static_cast<int>(input >> c & 1u);
        for (int i = 0; i < network.size; ++i) {
          const Comparator step = network.steps[i];
          const unsigned high = keys >> step.high & 1u;
          const unsigned low = keys >> step.low & 1u;
          keys &= ~(1u << step.high | 1u << step.low);
          keys |= (high | low) << step.high | (high & low) << step.low;
        }
        if ((keys >> (n - 1) & 1u) != static_cast<unsigned>(ones >= n)) fail("network", "-", n, m, 0);
      }
    }
  }
}

std::vector<bool> expected_keep(const std::vector<float>& z, const std::vector<float>& score, int n, int m) {
  std::vector<bool> keep(z.size());
  const auto group_size = static_cast<size_t>(m);
  for (size_t start = 0; start < z.size(); start += group_size) {
    std::vector<size_t> order(group_size);
    std::iota(order.begin(), order.end(), start);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      const float sa = std::fabs(z[a]) * score[a];
      const float sb = std::fabs(z[b]) * score[b];
      if (std::isnan(sa) || std::isnan(sb)) return std::isnan(sa) && !std::isnan(sb);
      return sa > sb;
    });
    for (int i = 0; i < n; ++i) keep[order[static_cast<size_t>(i)]] = true;
  }
  return keep;
}

float random_number(std::mt19937& random, int kind) {
  static const float kSpecial[] = {0.0f,
                                   -0.0f,
                                   1.0f,
                                   -1.0f,
                                   std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity(),
                                   std::numeric_limits<float>::quiet_NaN(),
                                   -std::numeric_limits<float>::quiet_NaN(),
                                   1e-45f,
                                   -2e-45f,
                                   3e38f};
  switch (kind) {
    case 0:
      return std::normal_distribution<float>()(random);
    case 1:
      return static_cast<float>(static_cast<int>(random() % 5) - 2);
    case 2:
      return kSpecial[random() % (sizeof kSpecial / sizeof *kSpecial)];
    default: {
      const auto bits = static_cast<uint32_t>(random());
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
  }
}

bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

void test_pattern(const InstructionSet& isa, int n, int m, size_t groups, std::mt19937& random) {
  const SelectionKernels& kernels = *isa.selection;
  const size_t channels = static_cast<size_t>(m) * groups;
  std::vector<float> x(channels), score(channels), shift(channels), z(channels), values(channels);
  const int kind = static_cast<int>(random() % 4);
  for (size_t i = 0; i < channels; ++i) {
    x[i] = random_number(random, kind);
    score[i] = random() % 2 ? 1.0f : 0.5f + static_cast<float>(random() % 4);
    shift[i] = static_cast<float>(random() % 3) * 0.5f;
    z[i] = x[i] - shift[i];
  }
  const NMTopK nm_topk({n, m, ShiftMode::kStatic, false}, kernels);
  Workspace workspace;
  float token_shift = -1;
  nm_topk.run(x.data(), score.data(), Shift{shift.data(), 0.0f}, 1, channels, true, workspace, values.data(),
              &token_shift);
  const std::vector<bool> keep = expected_keep(z, score, n, m);
  for (size_t i = 0; i < channels; ++i) {
    if (!same(values[i], keep[i] ? z[i] : 0.0f)) fail("selection", isa.name, n, m, channels);
  }
  if (token_shift != 0) fail("token_shift", isa.name, n, m, channels);

  std::vector<float> scores(channels);
  for (size_t i = 0; i < channels; ++i) scores[i] = std::fabs(z[i]) * score[i];
  std::vector<uint8_t> mask(channels, 2);
  nm_topk.keep_mask(scores.data(), 1, channels, workspace, mask.data());
  for (size_t i = 0; i < channels; ++i) {
    if (mask[i] != static_cast<uint8_t>(keep[i])) fail("mask", isa.name, n, m, channels);
  }
}

void test_selection(const InstructionSet& isa, std::mt19937& random) {
  for (int m = 1; m <= kMaxGroupSize; ++m) {
    for (int n = 1; n <= m; ++n) test_pattern(isa, n, m, 1 + random() % 40, random);
  }
  for (int round = 0; round < 500; ++round) {
    const int m = kMaxGroupSize + 1 + static_cast<int>(random() % 1000);
    const int n =
        round % 4 == 0 ? m - static_cast<int>(random() % 3) : 1 + static_cast<int>(random() % static_cast<unsigned>(m));
    test_pattern(isa, n, m, 1 + random() % 3, random);
  }
}

template <class T>
void run_every_mode(const SelectionKernels& kernels, std::mt19937& random) {
  for (int round = 0; round < 200; ++round) {
    const int m = 1 + static_cast<int>(random() % (2 * kMaxGroupSize));
    const int n = 1 + static_cast<int>(random() % static_cast<unsigned>(m));
    const size_t channels = static_cast<size_t>(m) * (1 + random() % 9);
    const size_t tokens = random() % 4;
    std::vector<T> x(tokens * channels), values(tokens * channels);
    for (T& value : x) {
      if constexpr (std::is_same_v<T, float>) {
        value = random_number(random, static_cast<int>(random() % 4));
      } else {
        value.bits = static_cast<uint16_t>(random());
      }
    }
    const std::vector<float> score(channels, 1.0f), shift(channels, 0.25f);
    std::vector<float> token_shift(tokens);
    const NMTopK nm_topk({n, m, static_cast<ShiftMode>(random() % 3), random() % 2 == 1}, kernels);
    Workspace workspace;
    nm_topk.run(x.data(), score.data(), Shift{shift.data(), 0.0f}, tokens, channels, random() % 2 == 1, workspace,
                values.data(), token_shift.data());
  }
}

void test_median(const InstructionSet& isa, std::mt19937& random) {
  const SelectionKernels& kernels = *isa.selection;
  for (int round = 0; round < 3000; ++round) {
    std::vector<float> v(1 + random() % 1000);
    const int kind = static_cast<int>(random() % 4);
    for (float& value : v) value = random_number(random, kind);
    const float found = median(kernels, v.data(), v.size());
    const bool has_nan = std::any_of(v.begin(), v.end(), [](float a) { return std::isnan(a); });
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(has_nan ? 0 : (v.size() - 1) / 2), v.end());
    if (has_nan ? !std::isnan(found) : found != v[(v.size() - 1) / 2]) fail("median", isa.name, 0, 0, v.size());
  }
}

// Every float16 number, and float32 numbers; their count leaves a rest for every width.
void test_half(const InstructionSet& isa, std::mt19937& random) {
  const SelectionKernels& kernels = *isa.selection;
  std::vector<Float16> half(65536 + 3), narrow(half.size()), expected_narrow(half.size());
  std::vector<float> wide(half.size()), expected_wide(half.size());
  for (size_t i = 0; i < half.size(); ++i) half[i].bits = static_cast<uint16_t>(i);
  kernels.widen_float16(half.data(), half.size(), wide.data());
  kPortableSelection.widen_float16(half.data(), half.size(), expected_wide.data());
  for (size_t i = 0; i < half.size(); ++i) {
    if (!same(wide[i], expected_wide[i])) fail("widening", isa.name, 0, 0, i);
  }
  for (int round = 0; round < 30; ++round) {
    for (float& value : wide) {
      auto bits = static_cast<uint32_t>(random());
      // Mostly in the range of float16, and with so many zeros at the end that many lie halfway between two numbers.
      if (round > 0) bits = (bits & 0x80000000u) | ((0x33000000u + bits % 0x14a00000u) & ~0u << random() % 24);
      std::memcpy(&value, &bits, sizeof value);
    }
    kernels.narrow_float16(wide.data(), wide.size(), narrow.data());
    kPortableSelection.narrow_float16(wide.data(), wide.size(), expected_narrow.data());
    for (size_t i = 0; i < wide.size(); ++i) {
      if (!std::isnan(wide[i]) && narrow[i].bits != expected_narrow[i].bits) fail("narrowing", isa.name, 0, 0, i);
      if (std::isnan(wide[i]) && (narrow[i].bits & 0x7fffu) <= 0x7c00u) fail("narrowing a NaN", isa.name, 0, 0, i);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  test_networks();
  for (const InstructionSet* set : supported_instruction_sets()) {
    const InstructionSet& isa = *set;
    for (int round = 0; round < 3; ++round) test_selection(isa, random);
    test_median(isa, random);
    test_half(isa, random);
    const SelectionKernels& kernels = *isa.selection;
    run_every_mode<float>(kernels, random);
    run_every_mode<Float16>(kernels, random);
    run_every_mode<BFloat16>(kernels, random);
    std::printf("%s: ok\n", isa.name);
  }
}
