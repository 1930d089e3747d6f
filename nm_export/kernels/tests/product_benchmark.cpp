// Microseconds of every algorithm of one product on one thread, with weights that come from memory: copies of the
// weight take turns, twice as large together as a third-level cache of 32 MiB. Medians of processor time.
//
// Usage: product_benchmark TOKENS INPUTS OUTPUTS [instruction set] [type]   (all of both by default)

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

#include "product/sparse_matmul.h"

namespace {

using namespace nm_export;

constexpr size_t kBytesOfCopies = size_t{64} << 20;
constexpr size_t kBlockSize = 32;
constexpr const char* kTypes[kWeightTypes] = {"float32", "float16", "bfloat16", "uint8", "uint4"};

template <class Body>
double median_microseconds(Body body) {
  std::vector<double> times;
  double total = 0;
  while (times.size() < 21 || (total < 3e5 && times.size() < 2000)) {
    const std::clock_t start = std::clock();
    body(times.size());
    times.push_back(static_cast<double>(std::clock() - start) * 1e6 / static_cast<double>(CLOCKS_PER_SEC));
    total += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: product_benchmark TOKENS INPUTS OUTPUTS [instruction set] [type]\n");
    return 2;
  }
  const size_t tokens = std::strtoul(argv[1], nullptr, 10);
  const size_t inputs = std::strtoul(argv[2], nullptr, 10);
  const size_t outputs = std::strtoul(argv[3], nullptr, 10) / kBlockSize * kBlockSize;
  const char* const only_isa = argc > 4 ? argv[4] : nullptr;
  const char* const only_type = argc > 5 ? argv[5] : nullptr;
  if (tokens == 0 || inputs == 0 || outputs == 0) {
    std::fprintf(stderr, "product_benchmark: TOKENS, INPUTS and OUTPUTS must be positive, OUTPUTS 32 or more\n");
    return 2;
  }
  std::mt19937 random(0);
  std::vector<float> values(tokens * inputs), zeros(std::max(outputs, tokens)), y(tokens * outputs);
  for (float& value : values) value = random() % 2 == 0 ? 0.0f : std::normal_distribution<float>()(random);
  const std::vector<float> scales((inputs + kBlockSize - 1) / kBlockSize * outputs, 0.01f);
  CallBuffers call_buffers;
  WorkerBuffers worker_buffers;

  for (int t = 0; t < kWeightTypes; ++t) {
    if (only_type != nullptr && std::strcmp(kTypes[t], only_type) != 0) continue;
    const auto type = static_cast<WeightType>(t);
    const size_t bytes = inputs * outputs * stored_bits(type) / 8;
    const size_t copies = kBytesOfCopies / bytes + 1;
    std::vector<unsigned char> data(bytes * copies, 0x3c);  // a number near 0.01, 1 or 60
    SparseProduct product{};
    product.weight.type = type;
    product.weight.outputs = outputs;
    if (is_quantized(type)) {
      product.weight.scales = scales.data();
      product.weight.block_size = kBlockSize;
      product.weight.zero_point = 8;
    }
    product.values = values.data();
    product.bias = product.token_shift = product.offset = zeros.data();
    product.y = y.data();
    product.tokens = tokens;
    product.inputs = inputs;
    product.int8_activations = is_quantized(type);
    for (const InstructionSet* isa : supported_instruction_sets()) {
      if (only_isa != nullptr && std::strcmp(isa->name, only_isa) != 0) continue;
      const Candidates all = candidates(*isa, product);
      for (size_t i = 0; i < all.count; ++i) {
        const double time = median_microseconds([&](size_t call) {
          product.weight.data = data.data() + call % copies * bytes;
          const SparseMatMul matmul(*isa, product, *all.algorithm[i], 1, Partition::kSplitK, call_buffers);
          for (size_t task = 0; task < matmul.tasks(); ++task) matmul.run(task, worker_buffers);
          matmul.finish();
        });
        std::printf("%-9s %-10s %-14s %.1f\n", kTypes[t], isa->name, all.algorithm[i]->name(), time);
      }
    }
  }
}
