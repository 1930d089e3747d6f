// Drives the sparse products without ONNX Runtime: every instruction set of this machine against float64 sums. Buffers
// have their exact size, so that a sanitizer sees every step outside.

#include "product/sparse_matmul.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "isa/instruction_set.h"

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

// The scales or zero points of a weight, stored as it says.
std::vector<unsigned char> stored_numbers(const Weight& weight, const std::vector<float>& numbers) {
  const WeightType type = weight.half_scales ? WeightType::kFloat16 : WeightType::kFloat32;
  const size_t size = weight.half_scales ? 2 : 4;
  std::vector<unsigned char> bytes(numbers.size() * size);
  for (size_t i = 0; i < numbers.size(); ++i) store(numbers[i], type, bytes.data() + i * size);
  return bytes;
}

const Algorithm& any_candidate(const InstructionSet& isa, const SparseProduct& product, std::mt19937& random) {
  const Candidates all = candidates(isa, product);
  return *all.algorithm[random() % all.count];
}

void multiply(const InstructionSet& isa, const SparseProduct& product, const Algorithm& algorithm, size_t workers,
              Partition partition = Partition::kSplitK) {
  CallBuffers call_buffers;
  WorkerBuffers worker_buffers;
  const SparseMatMul matmul(isa, product, algorithm, workers, partition, call_buffers);
  for (size_t task = 0; task < matmul.tasks(); ++task) matmul.run(task, worker_buffers);
  matmul.finish();
}

void test_product(const InstructionSet& isa, std::mt19937& random) {
  const auto up_to = [&](size_t limit) { return 1 + random() % limit; };
  const size_t tokens = random() % 2 == 0 ? up_to(10) : up_to(300);
  const bool is_deep = random() % 4 == 0;  // 1,024 inputs are summed up by several tasks
  const size_t inputs = up_to(is_deep ? 3000 : 200);
  const size_t outputs = up_to(!is_deep && random() % 4 == 0 ? 3000 : 150);
  const auto type = static_cast<WeightType>(random() % 3);
  const size_t size = type == WeightType::kFloat32 ? 4 : 2;

  std::vector<float> values(tokens * inputs), weight(inputs * outputs), bias(outputs), offset(outputs);
  std::vector<float> token_shift(tokens), y(tokens * outputs);
  for (float& value : values) value = random() % 2 == 0 ? 0.0f : small_number(random);
  for (std::vector<float>* vector : {&weight, &bias, &offset, &token_shift}) {
    for (float& value : *vector) value = small_number(random);
  }
  std::vector<unsigned char> stored(weight.size() * size);
  for (size_t i = 0; i < weight.size(); ++i) store(weight[i], type, stored.data() + i * size);

  Weight matrix{};
  matrix.type = type;
  matrix.data = stored.data();
  matrix.outputs = outputs;
  const SparseProduct product{matrix, values.data(), bias.data(), token_shift.data(), offset.data(), y.data(),
                              tokens, inputs,        false};
  multiply(isa, product, any_candidate(isa, product, random), up_to(20),
           random() % 2 == 0 ? Partition::kSplitK : Partition::kOutputs);

  // Multiples of 1/64 below 2^16: float32 holds every sum exactly.
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < outputs; ++c) {
      double sum = static_cast<double>(bias[c]) + static_cast<double>(token_shift[t]) * static_cast<double>(offset[c]);
      for (size_t k = 0; k < inputs; ++k) {
        sum += static_cast<double>(values[t * inputs + k]) * static_cast<double>(weight[k * outputs + c]);
      }
      if (sum != static_cast<double>(y[t * outputs + c])) {
        std::fprintf(stderr, "wrong with %s, %zu tokens, K = %zu, O = %zu, weight type %d\n", isa.name, tokens, inputs,
                     outputs, static_cast<int>(type));
        std::exit(1);
      }
    }
  }
}

// Quantized weights with activations that are rounded to int8: docs/semantics.md once more, one group at a time.
void test_int8_activations(const InstructionSet& isa, std::mt19937& random) {
  const auto up_to = [&](size_t limit) { return 1 + random() % limit; };
  const auto type = random() % 2 == 0 ? WeightType::kUInt8 : WeightType::kUInt4;
  const size_t bits = type == WeightType::kUInt8 ? 8 : 4;
  const size_t tokens = up_to(isa.int8->packed != nullptr && random() % 3 == 0 ? 40 : 16);
  const bool is_deep = random() % 4 == 0;
  const size_t inputs = up_to(is_deep ? 3000 : 200);
  const size_t outputs = 2 * up_to(!is_deep && random() % 4 == 0 ? 1500 : 150);
  const size_t block_size = kSmallestBlock << random() % 5;
  const size_t blocks = (inputs + block_size - 1) / block_size;
  const size_t group = std::min(block_size, kBlockInputs);
  const size_t dropped = random() % 4;  // of four inputs

  std::vector<uint8_t> integers(inputs * outputs * bits / 8);
  for (uint8_t& byte : integers) byte = static_cast<uint8_t>(random());
  std::vector<float> values(tokens * inputs), scales(blocks * outputs), zero_points(blocks * outputs);
  std::vector<float> zeros(std::max(outputs, tokens)), y(tokens * outputs);
  for (float& value : values) value = random() % 4 < dropped ? 0.0f : small_number(random);
  for (float& scale : scales) scale = small_number(random);
  for (float& zero_point : zero_points) zero_point = small_number(random);

  Weight weight{};
  weight.type = type;
  weight.data = integers.data();
  weight.outputs = outputs;
  weight.block_size = block_size;
  weight.half_scales = random() % 2 == 0;
  weight.zero_point = static_cast<float>(random() % 256);
  const std::vector<unsigned char> stored_scales = stored_numbers(weight, scales);
  const std::vector<unsigned char> stored_zero_points = stored_numbers(weight, zero_points);
  weight.scales = stored_scales.data();
  weight.zero_points = random() % 2 == 0 ? stored_zero_points.data() : nullptr;
  const SparseProduct product{weight,   values.data(), zeros.data(), zeros.data(), zeros.data(),
                              y.data(), tokens,        inputs,       true};
  multiply(isa, product, any_candidate(isa, product, random), up_to(20));

  const auto integer = [&](size_t index) {
    return bits == 8 ? integers[index] : integers[index / 2] >> (index % 2 * 4) & 15;
  };
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < outputs; ++c) {
      double sum = 0;
      double magnitude = 0;
      for (size_t first = 0; first < inputs; first += group) {
        const size_t last = std::min(first + group, inputs);
        const float* x = values.data() + t * inputs;
        float largest = 0;
        for (size_t k = first; k < last; ++k) largest = std::max(largest, std::fabs(x[k]));
        if (largest == 0.0f) continue;
        const float reciprocal = 127.0f / largest;
        int of_integers = 0;
        int of_activations = 0;
        for (size_t k = first; k < last; ++k) {
          const auto rounded = static_cast<int>(std::nearbyint(x[k] * reciprocal));
          of_integers += rounded * integer(k * outputs + c);
          of_activations += rounded;
        }
        const size_t at = first / block_size * outputs + c;
        const auto zero_point =
            static_cast<double>(weight.zero_points == nullptr ? weight.zero_point : zero_points[at]);
        const double factor = static_cast<double>(largest / 127.0f) * static_cast<double>(scales[at]);
        sum += factor * (of_integers - zero_point * of_activations);
        magnitude += std::fabs(factor) * (std::fabs(of_integers) + std::fabs(zero_point * of_activations));
      }
      if (!(std::fabs(sum - static_cast<double>(y[t * outputs + c])) <= 1e-6 * magnitude)) {
        std::fprintf(stderr, "wrong with %s, %zu tokens, K = %zu, O = %zu, weight type %d, blocks of %zu\n", isa.name,
                     tokens, inputs, outputs, static_cast<int>(type), block_size);
        std::exit(1);
      }
    }
  }
}

// The result does not depend on the number of workers and on the algorithm, which are chosen by time.
void test_candidates(const InstructionSet& isa, std::mt19937& random) {
  const auto up_to = [&](size_t limit) { return 1 + random() % limit; };
  const auto type = static_cast<WeightType>(random() % kWeightTypes);
  const size_t tokens = up_to(random() % 2 == 0 ? 4 : 40);
  const bool is_deep = random() % 2 == 0;
  const size_t inputs = up_to(is_deep ? 3000 : 300);
  const size_t outputs = 2 * up_to(is_deep ? 200 : 2000);
  const size_t block_size = kSmallestBlock << random() % 5;
  const size_t blocks = (inputs + block_size - 1) / block_size;
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& numbers) {
    for (float& number : numbers) number = normal(random);
  };

  std::vector<float> weight(inputs * outputs), values(tokens * inputs), scales(blocks * outputs);
  std::vector<float> bias(outputs), offset(outputs), token_shift(tokens);
  std::vector<unsigned char> stored(weight.size() * sizeof(float));
  const bool is_float = !is_quantized(type);
  for (size_t i = 0; is_float && i < weight.size(); ++i) {
    const float number = type == WeightType::kFloat32 ? normal(random) : small_number(random);
    store(number, type, stored.data() + i * (type == WeightType::kFloat32 ? 4 : 2));
  }
  for (size_t i = 0; !is_float && i < stored.size(); ++i) stored[i] = static_cast<unsigned char>(random());
  for (std::vector<float>* vector : {&values, &scales, &bias, &offset, &token_shift}) fill(*vector);
  for (float& value : values) value = random() % 2 == 0 ? 0.0f : value;
  if (random() % 8 == 0) {  // smaller than what is rounded, but for some
    for (float& value : values) value *= random() % 64 == 0 ? 1.0f : 0x1p-110f;
  }

  Weight matrix{};
  matrix.type = type;
  matrix.data = stored.data();
  matrix.outputs = outputs;
  if (!is_float) {
    matrix.scales = scales.data();
    matrix.zero_point = 8;
    matrix.block_size = block_size;
  }
  const auto product_by = [&](size_t candidate, size_t workers) {
    std::vector<float> y(tokens * outputs);
    const SparseProduct product{matrix,   values.data(), bias.data(), token_shift.data(), offset.data(),
                                y.data(), tokens,        inputs,      !is_float};
    const Candidates all = candidates(isa, product);
    if (candidate < all.count) multiply(isa, product, *all.algorithm[candidate], workers);
    return candidate < all.count ? y : std::vector<float>();
  };
  const std::vector<float> first = product_by(0, 1);
  for (size_t candidate = 0; candidate < 3; ++candidate) {
    const std::vector<float> other = product_by(candidate, up_to(20));
    if (other.empty() || std::memcmp(first.data(), other.data(), first.size() * sizeof(float)) == 0) continue;
    std::fprintf(stderr, "other numbers by candidate %zu with %s, %zu tokens, K = %zu, O = %zu, weight type %d\n",
                 candidate, isa.name, tokens, inputs, outputs, static_cast<int>(type));
    std::exit(1);
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const InstructionSet* set : supported_instruction_sets()) {
    const InstructionSet& isa = *set;
    for (int round = 0; round < 150; ++round) {
      test_product(isa, random);
      test_int8_activations(isa, random);
      test_candidates(isa, random);
    }
    std::printf("%s: ok\n", isa.name);
  }
}
