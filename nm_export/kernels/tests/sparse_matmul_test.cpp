// Drives the sparse product without ONNX Runtime: every instruction set of this machine against float64 sums. Buffers
// have their exact size, so that a sanitizer sees every step outside.

#include "sparse_matmul.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "instruction_set.h"

namespace {

using namespace nm_export;

// A number that float32, bfloat16 and float16 hold exactly, as it is stored.
float small_number(std::mt19937& random) { return static_cast<float>(static_cast<int>(random() % 31) - 15) / 8.0f; }

void store(float value, WeightType type, unsigned char* target) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (type == WeightType::kFloat32) {
    std::memcpy(target, &bits, sizeof bits);
    return;
  }
  auto half = static_cast<uint16_t>(bits >> 16);
  if (type == WeightType::kFloat16) {
    const uint32_t exponent_and_mantissa = (bits & 0x7fffffffu) == 0 ? 0 : (bits & 0x7fffffffu) - (112u << 23);
    half = static_cast<uint16_t>((bits >> 16 & 0x8000u) | exponent_and_mantissa >> 13);
  }
  std::memcpy(target, &half, sizeof half);
}

void test_product(const InstructionSet& isa, std::mt19937& random) {
  const auto up_to = [&](size_t limit) { return 1 + random() % limit; };
  const size_t tokens = random() % 2 == 0 ? up_to(10) : up_to(300);
  const size_t channels = up_to(200);
  const size_t columns = random() % 4 == 0 ? up_to(3000) : up_to(150);
  const auto type = static_cast<WeightType>(random() % 3);
  const size_t size = type == WeightType::kFloat32 ? 4 : 2;

  std::vector<float> values(tokens * channels), weight(channels * columns), bias(columns), offset(columns);
  std::vector<float> token_shift(tokens), y(tokens * columns);
  for (float& value : values) value = random() % 2 == 0 ? 0.0f : small_number(random);
  for (std::vector<float>* vector : {&weight, &bias, &offset, &token_shift}) {
    for (float& value : *vector) value = small_number(random);
  }
  std::vector<unsigned char> stored(weight.size() * size);
  for (size_t i = 0; i < weight.size(); ++i) store(weight[i], type, stored.data() + i * size);

  Weight matrix{};
  matrix.type = type;
  matrix.data = stored.data();
  matrix.columns = columns;
  const SparseProduct product{matrix,        values.data(), bias.data(), token_shift.data(),
                              offset.data(), y.data(),      tokens,      channels};
  CallBuffers call_buffers;
  WorkerBuffers worker_buffers;
  const SparseMatMul matmul(*isa.products, product, up_to(20), call_buffers);
  for (size_t task = 0; task < matmul.tasks(); ++task) matmul.run(task, worker_buffers);

  // Multiples of 1/64 below 2^16: float32 holds every sum exactly.
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < columns; ++c) {
      double sum = static_cast<double>(bias[c]) + static_cast<double>(token_shift[t]) * static_cast<double>(offset[c]);
      for (size_t k = 0; k < channels; ++k) {
        sum += static_cast<double>(values[t * channels + k]) * static_cast<double>(weight[k * columns + c]);
      }
      if (sum != static_cast<double>(y[t * columns + c])) {
        std::fprintf(stderr, "wrong with %s, %zu tokens, K = %zu, O = %zu, weight type %d\n", isa.name, tokens,
                     channels, columns, static_cast<int>(type));
        std::exit(1);
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const char* name : {"portable", "avx2", "avx512", "neon"}) {
    const InstructionSet isa = find_instruction_set(name);
    if (isa.products == nullptr) continue;
    for (int round = 0; round < 150; ++round) test_product(isa, random);
    std::printf("%s: ok\n", name);
  }
}
