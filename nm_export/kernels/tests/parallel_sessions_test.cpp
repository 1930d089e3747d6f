// Many threads at once: nodes that they share and nodes of their own, made and freed in between, and the plain C
// interface. Every result equals that of one thread alone, bit for bit. tests/kernels/tsan.sh builds it with
// ThreadSanitizer.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "c_api.h"
#include "runtime_stand_in.h"

namespace {

using namespace nm_export;
using stand_in::Node;
using stand_in::Tensor;

constexpr int kThreads = 6;

Tensor floats(std::vector<int64_t> shape, std::mt19937& random) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  Tensor tensor{std::move(shape), std::vector<unsigned char>(4 * count)};
  for (size_t i = 0; i < count; ++i) {
    const float value = random() % 2 == 0 ? 0.0f : static_cast<float>(static_cast<int>(random() % 31) - 15) / 8.0f;
    std::memcpy(tensor.bytes.data() + 4 * i, &value, sizeof value);
  }
  return tensor;
}

Tensor bytes(std::vector<int64_t> shape, std::mt19937& random) {
  Tensor tensor = floats(std::move(shape), random);
  tensor.bytes.resize(tensor.bytes.size() / 4);
  for (unsigned char& byte : tensor.bytes) byte = static_cast<unsigned char>(random());
  return tensor;
}

struct Case {
  const char* op;
  ort::ElementType second;
  std::map<std::string, int64_t> attributes;
  std::vector<Tensor> inputs;
  std::vector<Tensor> expected;

  std::unique_ptr<Node> node() const { return std::make_unique<Node>(op, ort::kFloat, second, attributes); }
};

// Few and many tokens, so many that a call is cut to parts.
std::vector<Case> make_cases() {
  std::mt19937 random(1);
  std::vector<Case> cases;
  for (const int64_t tokens : {1, 3, 40}) {
    cases.push_back({"NMTopK",
                     ort::kFloat,
                     {{"n", 8}, {"m", 16}, {"shift_mode", 2}, {"variance_correction", 1}, {"phase", 0}, {"strided", 1}},
                     {floats({tokens, 1024}, random), floats({1024}, random), floats({1024}, random)},
                     {}});
    cases.push_back({"NMSparseMatMul",
                     ort::kFloat,
                     {},
                     {floats({tokens, 256}, random), floats({256, 1200}, random), floats({1200}, random),
                      floats({tokens, 1}, random), floats({1200}, random)},
                     {}});
    for (const int64_t level : {0, 4}) {
      cases.push_back(
          {"NMSparseMatMulNBits",
           ort::kUInt8,
           {{"block_size", 32}, {"accuracy_level", level}},
           {floats({tokens, 256}, random), bytes({256, 1200}, random), floats({8, 1200}, random),
            floats({8, 1200}, random), floats({1200}, random), floats({tokens, 1}, random), floats({1200}, random)},
           {}});
    }
  }
  for (Case& one : cases) one.expected = one.node()->run(one.inputs);
  return cases;
}

void require_equal(const std::vector<Tensor>& found, const Case& one) {
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i].shape == one.expected[i].shape && found[i].bytes == one.expected[i].bytes) continue;
    size_t at = 0;
    while (at < found[i].bytes.size() && found[i].bytes[at] == one.expected[i].bytes[at]) ++at;
    std::fprintf(stderr, "%s: another result beside other threads, from byte %zu of %zu on\n", one.op, at,
                 found[i].bytes.size());
    std::abort();
  }
}

// All threads start at once, so that what is made once is asked for by several.
template <class Body>
void at_once(Body body) {
  std::atomic<int> waiting{kThreads};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_interface() {
  std::mt19937 random(2);
  constexpr size_t kRows = 48, kChannels = 512, kColumns = 700;
  const Tensor x = floats({kRows, kChannels}, random);
  const Tensor weight = floats({kChannels, kColumns}, random);
  std::vector<float> values(kRows * kChannels), token_shift(kRows), y(kRows * kColumns);
  nm_export_nm_topk_arguments prune{};
  prune.x = x.bytes.data();
  prune.values = values.data();
  prune.token_shift = token_shift.data();
  prune.channels = kChannels;
  prune.dtype = NM_EXPORT_FLOAT32;
  prune.n = 8;
  prune.m = 16;
  prune.shift_mode = 1;
  prune.variance_correction = 1;
  prune.pruned = 1;
  nm_export_sparse_matmul_arguments multiply{};
  multiply.values = values.data();
  multiply.weight = weight.bytes.data();
  multiply.y = y.data();
  multiply.tokens = kRows;
  multiply.channels = kChannels;
  multiply.columns = kColumns;
  multiply.dtype = NM_EXPORT_FLOAT32;
  const auto share = [&](int i) {
    constexpr size_t kShare = kRows / kThreads;
    if (nm_export_nm_topk(&prune, static_cast<size_t>(i) * kShare, kShare) != NM_EXPORT_OK) std::abort();
  };
  const auto part = [&](int i) {
    if (nm_export_sparse_matmul(&multiply, static_cast<size_t>(i), kThreads) != NM_EXPORT_OK) std::abort();
  };
  at_once(share);  // the first calls of the process: the instruction set is chosen now
  at_once(part);
  const std::vector<float> together_values = values, together = y;
  for (int i = 0; i < kThreads; ++i) share(i);
  for (int i = 0; i < kThreads; ++i) part(i);
  if (values != together_values || y != together) {
    std::fprintf(stderr, "the plain C interface: another result beside other threads\n");
    std::abort();
  }
}

}  // namespace

int main() {
  test_interface();
  const std::vector<Case> cases = make_cases();
  for (const Case& one : cases) require_equal(one.node()->run(one.inputs), one);
  std::vector<std::unique_ptr<Node>> shared;
  for (const Case& one : cases) shared.push_back(one.node());
  at_once([&](int i) {
    std::mt19937 random(static_cast<unsigned>(i));
    for (int round = 0; round < 40; ++round) {
      const size_t k = random() % cases.size();
      const std::unique_ptr<Node> own = random() % 3 == 0 ? cases[k].node() : nullptr;
      require_equal((own ? *own : *shared[k]).run(cases[k].inputs), cases[k]);
    }
  });
  std::printf("%d threads: ok\n", kThreads);
}
