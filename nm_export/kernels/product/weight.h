// A weight as the products read it, and the pieces of it and of their input that loops work on. Plain structs, for
// kernels and for the code that calls them.
//
// A product has K inputs (channels of the pruned input) and O outputs. Inputs are taken in blocks of kBlockInputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nm_export {

// How a weight is stored. Sums are float32 whatever it is. The integers are those of a quantized weight.
enum class WeightType { kFloat32, kFloat16, kBFloat16, kUInt8, kUInt4 };
constexpr int kFloatTypes = 3;
constexpr int kQuantizedTypes = 2;
constexpr int kWeightTypes = kFloatTypes + kQuantizedTypes;

constexpr bool is_quantized(WeightType type) { return type >= WeightType::kUInt8; }

// Of tables that have an entry for each quantized type.
constexpr size_t quantized_index(WeightType type) {
  return static_cast<size_t>(type) - static_cast<size_t>(WeightType::kUInt8);
}

// Of a number of a weight.
constexpr size_t stored_bits(WeightType type) {
  constexpr size_t kBits[kWeightTypes] = {32, 16, 16, 8, 4};
  return kBits[static_cast<size_t>(type)];
}

// A weight of [inputs, outputs]: what an input is multiplied by is contiguous. It needs no alignment beyond that of its
// type.
struct Weight {
  WeightType type;
  const void* data;  // two numbers of 4 bits share a byte, the first has the low bits; then `outputs` is even
  size_t outputs;

  // Of quantized weights, which stand for (integer - zero point) * scale, with one scale and one zero point for
  // `block_size` inputs of an output.
  const void* scales;       // [inputs / block_size, rounded up; outputs], float32 or float16
  const void* zero_points;  // the same; null where all are `zero_point`
  float zero_point;
  bool half_scales;   // scales and zero points are float16
  size_t block_size;  // a power of two, kSmallestBlock or more
};
constexpr size_t kSmallestBlock = 16;

// Inputs are taken in blocks, one for every bit of a mask.
constexpr size_t kBlockInputs = 64;

// Rows of a weight, one for each input that a token keeps or that is needed next: their numbers, and what they are
// multiplied by.
struct WeightRows {
  const uint32_t* row;
  const float* value;
  size_t count;
};

// Some inputs and outputs of a weight. The first output is a multiple of 64.
struct WeightBlock {
  size_t first_input;
  size_t inputs;
  size_t first_output;
  size_t outputs;
};

// The values of some tokens in one block of inputs, packed one token after the other.
struct TokenBlock {
  const float* x;         // [tokens, kBlockInputs]
  const uint64_t* masks;  // bit k: input k of the token is not zero
  size_t tokens;
  size_t inputs;
};

}  // namespace nm_export
