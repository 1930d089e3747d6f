// Drives the kernels and the plain C interface with shapes, patterns, types and numbers that libFuzzer chooses, and
// compares every result with a slow statement. Buffers have their exact size, so that a sanitizer sees every step
// outside. tests/kernels/fuzz.sh builds and runs it.

#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "c_api.h"
#include "isa/instruction_set.h"
#include "product/sparse_matmul.h"
#include "selection/nm_topk.h"
#include "slow_statement.h"

namespace {

using namespace nm_export;

[[noreturn]] void fail(const char* what, const char* by) {
  std::fprintf(stderr, "%s: wrong with %s\n", what, by);
  std::abort();
}

void require(bool holds, const char* what, const char* by) {
  if (!holds) fail(what, by);
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// More numbers than an input has bytes: a few that the fuzzer chooses, mixed with random ones of a kind that it
// chooses.
class Numbers {
 public:
  explicit Numbers(FuzzedDataProvider& data)
      : kind_(data.ConsumeIntegralInRange(0, 4)), random_(data.ConsumeIntegral<uint32_t>()) {
    const size_t count = data.ConsumeIntegralInRange<size_t>(1, 12);
    for (size_t i = 0; i < count; ++i) chosen_.push_back(data.ConsumeIntegral<uint32_t>());
  }

  uint32_t bits() {
    if (kind_ == 0 || random_() % 4 == 0) return chosen_[random_() % chosen_.size()];
    return static_cast<uint32_t>(random_());
  }

  float next() {
    switch (kind_) {
      case 1:
        return random_() % 2 == 0 ? 0.0f : static_cast<float>(static_cast<int>(random_() % 31) - 15) / 8.0f;
      case 2:
        return std::normal_distribution<float>()(random_);
      case 3: {  // often equal
        const float few[] = {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, 1e-45f, 3e38f};
        return few[random_() % 9];
      }
      default:
        return float_of(bits());
    }
  }

  // finite and > 0, as scores of channels are
  float positive() {
    const float value = std::fabs(next());
    return std::isfinite(value) && value > 0 ? value : 1.0f;
  }

  // so small that no product with it overflows
  float moderate() {
    const float value = next();
    return std::isfinite(value) && std::fabs(value) < 1e6f ? value : 0.5f;
  }

  void fill(float& number) { number = next(); }
  void fill(Float16& number) { number.bits = static_cast<uint16_t>(bits()); }
  void fill(BFloat16& number) { number.bits = static_cast<uint16_t>(bits()); }

 private:
  int kind_;
  std::mt19937 random_;
  std::vector<uint32_t> chosen_;
};

std::vector<float> floats(Numbers& numbers, size_t count) {
  std::vector<float> v(count);
  for (float& value : v) value = numbers.next();
  return v;
}

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets = supported_instruction_sets();
  return sets;
}

struct PatternOf {
  int n;
  int m;
  size_t channels;
};

PatternOf pattern_of(FuzzedDataProvider& data) {
  const bool large = data.ConsumeIntegralInRange(0, 5) == 0;
  const int m = large ? data.ConsumeIntegralInRange(1, 700) : data.ConsumeIntegralInRange(1, 64);
  const int n = data.ConsumeIntegralInRange(1, m);
  const size_t groups = data.ConsumeIntegralInRange<size_t>(1, large ? 3 : 20);
  return {n, m, groups * static_cast<size_t>(m)};
}

// What a call of NMTopK was given.
template <class T>
struct TopKCall {
  NMTopKParameters parameters;
  std::vector<T> x;
  std::vector<float> score;  // empty means ones
  std::vector<float> shift;  // empty means zeros; one number means that for all channels
  size_t tokens;
  size_t channels;
  bool pruned;
};

template <class T>
TopKCall<T> top_k_call(FuzzedDataProvider& data) {
  const PatternOf pattern = pattern_of(data);
  TopKCall<T> call;
  call.parameters = {pattern.n, pattern.m, static_cast<ShiftMode>(data.ConsumeIntegralInRange(0, 2)),
                     data.ConsumeBool()};
  call.tokens = data.ConsumeIntegralInRange<size_t>(0, 4);
  call.channels = pattern.channels;
  call.pruned = data.ConsumeIntegralInRange(0, 7) != 0;
  const int score = data.ConsumeIntegralInRange(0, 2);
  const int shift = data.ConsumeIntegralInRange(0, 2);
  Numbers numbers(data);
  call.x.resize(call.tokens * call.channels);
  for (T& value : call.x) numbers.fill(value);
  if (score > 0) {
    call.score.resize(call.channels);
    for (float& value : call.score) value = numbers.positive();
  }
  if (shift > 0) {
    call.shift.resize(shift == 1 ? 1 : call.channels);
    for (float& value : call.shift) value = numbers.moderate();
  }
  return call;
}

// Compares one token of a call with the slow statement, given the dynamic shift that was computed for it.
template <class T>
void check_token(const TopKCall<T>& call, size_t token, const T* values, float token_shift, const char* by) {
  const auto n = static_cast<size_t>(call.parameters.n);
  const auto m = static_cast<size_t>(call.parameters.m);
  std::vector<float> x(call.channels), z(call.channels), p(call.channels), scores(call.channels);
  for (size_t k = 0; k < call.channels; ++k) {
    x[k] = static_cast<float>(slow::value_of(call.x[token * call.channels + k]));
  }
  switch (call.parameters.shift_mode) {
    case ShiftMode::kStatic:
      require(token_shift == 0, "static token_shift", by);
      break;
    case ShiftMode::kDynamicMean:
      require(slow::is_mean(token_shift, x), "mean", by);
      break;
    case ShiftMode::kDynamicMedian: {
      const float median = slow::median(x);
      require(std::isnan(median) ? std::isnan(token_shift) : token_shift == median, "median", by);
    }
  }
  for (size_t k = 0; k < call.channels; ++k) {
    float shift = token_shift;
    if (call.parameters.shift_mode == ShiftMode::kStatic) {
      shift = call.shift.empty() ? 0.0f : call.shift[call.shift.size() == 1 ? 0 : k];
    }
    z[k] = x[k] - shift;
    scores[k] = std::fabs(z[k]) * (call.score.empty() ? 1.0f : call.score[k]);
  }
  const bool whole = !call.pruned || n == m;
  const std::vector<bool> kept = slow::keep(scores, n, m, call.parameters.strided);
  for (size_t k = 0; k < call.channels; ++k) p[k] = whole || kept[k] ? z[k] : 0.0f;
  const double ratio = whole || !call.parameters.variance_correction ? 1 : slow::variance_ratio(z, p);
  for (size_t k = 0; k < call.channels; ++k) {
    // what is corrected is rounded to float32 once more on the way
    const double error = ratio == 1 ? 0 : 3e-7;
    const double expected = ratio * static_cast<double>(p[k]);
    bool right = slow::is_rounded(values[k], expected, error);
    if (ratio != 1) right = right || std::fabs(slow::value_of(values[k]) - expected) <= 0x1p-148;
    if (!right) {
      std::fprintf(stderr, "channel %zu: %a, not %a (ratio %a of %a), n = %d, m = %d, K = %zu\n", k,
                   slow::value_of(values[k]), expected, ratio, static_cast<double>(p[k]), call.parameters.n,
                   call.parameters.m, call.channels);
      fail("values", by);
    }
    if (whole || kept[k] || !std::isfinite(ratio)) continue;
    require(slow::value_of(values[k]) == 0 && !std::signbit(slow::value_of(values[k])), "+0", by);
  }
}

template <class T>
void fuzz_top_k(FuzzedDataProvider& data) {
  TopKCall<T> call = top_k_call<T>(data);
  call.parameters.strided = data.ConsumeBool();  // which the C interface does not know
  const std::vector<float> ones(call.channels, 1.0f);
  const Shift shift = call.shift.size() > 1 ? Shift{call.shift.data(), 0.0f}
                                            : Shift{nullptr, call.shift.empty() ? 0.0f : call.shift[0]};
  Workspace workspace;
  for (const InstructionSet* isa : instruction_sets()) {
    const NMTopK nm_topk(call.parameters, *isa->selection);
    std::vector<T> values(call.x.size());
    std::vector<float> token_shift(call.tokens);
    nm_topk.run(call.x.data(), call.score.empty() ? ones.data() : call.score.data(), shift, call.tokens, call.channels,
                call.pruned, workspace, values.data(), token_shift.data());
    for (size_t t = 0; t < call.tokens; ++t) {
      check_token(call, t, values.data() + t * call.channels, token_shift[t], isa->name);
    }
  }
}

template <class T>
void fuzz_top_k_interface(FuzzedDataProvider& data, int32_t dtype) {
  const int broken = data.ConsumeIntegralInRange(0, 15);
  const size_t first = data.ConsumeIntegralInRange<size_t>(0, 4);
  const bool with_token_shift = data.ConsumeBool();
  const TopKCall<T> call = top_k_call<T>(data);
  const size_t begin = std::min(first, call.tokens);

  std::vector<T> values(call.x.size());
  std::vector<float> token_shift(call.tokens, -1.0f);
  nm_export_nm_topk_arguments a{};
  a.x = call.x.data();
  a.score = call.score.empty() ? nullptr : call.score.data();
  a.shift = call.shift.empty() ? nullptr : call.shift.data();
  a.values = values.data();
  a.token_shift = with_token_shift ? token_shift.data() : nullptr;
  a.channels = call.channels;
  a.shift_size = call.shift.size();
  a.dtype = dtype;
  a.n = call.parameters.n;
  a.m = call.parameters.m;
  a.shift_mode = static_cast<int32_t>(call.parameters.shift_mode);
  a.variance_correction = call.parameters.variance_correction;
  a.pruned = call.pruned;
  if (broken < 8) {
    const auto any = data.ConsumeIntegral<int32_t>();
    switch (broken) {
      case 0:
        a.n = any < 1 || any > a.m ? any : 0;
        break;
      case 1:
        a.m = any < a.n ? any : -a.m;
        break;
      case 2:
        a.channels = 0;
        break;
      case 3:
        if (a.m == 1) return;
        a.channels = call.channels - 1;
        break;
      case 4:
        a.shift_mode = any < 0 || any > 2 ? any : 3;
        break;
      case 5:
        a.dtype = any < 0 || any > 2 ? any : -1;
        break;
      case 6:
        if (call.shift.empty() || call.channels == 1) return;
        a.shift_size = static_cast<uint32_t>(any) == call.channels || any == 1 ? 0 : static_cast<uint32_t>(any);
        break;
      default:
        a.m = 0;
    }
    const std::vector<T> before = values;
    require(nm_export_nm_topk(&a, begin, call.tokens - begin) == NM_EXPORT_INVALID_ARGUMENT, "refusal", "C");
    require(before.empty() || std::memcmp(before.data(), values.data(), before.size() * sizeof(T)) == 0, "no writing",
            "C");
    return;
  }
  require(nm_export_nm_topk(&a, begin, call.tokens - begin) == NM_EXPORT_OK, "status", "C");
  for (size_t t = begin; t < call.tokens; ++t) {
    if (with_token_shift) check_token(call, t, values.data() + t * call.channels, token_shift[t], "C");
  }
  for (size_t t = 0; t < begin; ++t) require(token_shift[t] == -1.0f, "rows before the first", "C");
}

void fuzz_keep_mask(FuzzedDataProvider& data) {
  const PatternOf pattern = pattern_of(data);
  const size_t rows = data.ConsumeIntegralInRange<size_t>(0, 4);
  const bool broken = data.ConsumeIntegralInRange(0, 7) == 0;
  Numbers numbers(data);
  std::vector<float> scores = floats(numbers, rows * pattern.channels);
  for (float& score : scores) score = std::fabs(score);
  std::vector<uint8_t> mask(scores.size(), 7);
  if (broken) {
    const int32_t n = pattern.m + 1;
    require(nm_export_keep_mask(scores.data(), rows, pattern.channels, n, pattern.m, mask.data()) ==
                NM_EXPORT_INVALID_ARGUMENT,
            "refusal", "C");
    return;
  }
  require(nm_export_keep_mask(scores.data(), rows, pattern.channels, pattern.n, pattern.m, mask.data()) == NM_EXPORT_OK,
          "status", "C");
  const std::vector<bool> kept = slow::keep(scores, static_cast<size_t>(pattern.n), static_cast<size_t>(pattern.m));
  for (size_t i = 0; i < mask.size(); ++i) require(mask[i] == static_cast<uint8_t>(kept[i]), "mask", "C");
  for (const InstructionSet* isa : instruction_sets()) {
    Workspace workspace;
    std::vector<uint8_t> again(mask.size(), 7);
    NMTopK({pattern.n, pattern.m, ShiftMode::kStatic, false}, *isa->selection)
        .keep_mask(scores.data(), rows, pattern.channels, workspace, again.data());
    require(again == mask, "mask", isa->name);
  }
}

// A product's inputs, each in a buffer of its own.
struct ProductCall {
  size_t tokens = 0;
  size_t inputs = 0;
  Weight weight{};
  std::vector<float> values, bias, token_shift, offset;
  std::vector<uint8_t> data, scales, zero_points;
};

ProductCall product_call(FuzzedDataProvider& data, WeightType type) {
  ProductCall call;
  Weight& weight = call.weight;
  weight.type = type;
  const bool quantized = type >= WeightType::kUInt8;
  const bool nibbles = type == WeightType::kUInt4;
  call.tokens =
      data.ConsumeBool() ? data.ConsumeIntegralInRange<size_t>(1, 12) : data.ConsumeIntegralInRange<size_t>(1, 80);
  call.inputs = data.ConsumeIntegralInRange<size_t>(1, data.ConsumeIntegralInRange(0, 7) == 0 ? 2500 : 200);
  weight.outputs = data.ConsumeIntegralInRange<size_t>(1, data.ConsumeIntegralInRange(0, 7) == 0 ? 2500 : 200);
  if (nibbles) weight.outputs += weight.outputs % 2;
  if (call.tokens * call.inputs * weight.outputs > 3000000) call.tokens = 1;
  const size_t block_size = size_t{16} << data.ConsumeIntegralInRange(0, 4);
  const bool with_zero_points = data.ConsumeBool();
  const int zero_share = data.ConsumeIntegralInRange(0, 4);
  Numbers numbers(data);
  std::mt19937 random(numbers.bits());

  call.values = floats(numbers, call.tokens * call.inputs);
  for (float& value : call.values) {
    if (quantized && !(std::fabs(value) < 1e15f)) value = 1.0f;
    if (static_cast<int>(random() % 4) < zero_share) value = 0.0f;
  }
  call.bias = floats(numbers, weight.outputs);
  call.offset = floats(numbers, weight.outputs);
  call.token_shift = floats(numbers, call.tokens);
  const size_t count = call.inputs * weight.outputs;
  const size_t bits = type == WeightType::kFloat32 ? 32 : nibbles ? 4 : quantized ? 8 : 16;
  call.data.resize((count * bits + 7) / 8);
  for (size_t i = 0; i < call.data.size(); ++i) call.data[i] = static_cast<uint8_t>(numbers.bits() >> (i % 4 * 8));
  if (type == WeightType::kFloat32) {
    for (size_t i = 0; i < count; ++i) {
      const float value = numbers.next();
      std::memcpy(call.data.data() + 4 * i, &value, sizeof value);
    }
  }
  weight.data = call.data.data();
  if (!quantized) {
    for (size_t i = 0; i < count; ++i) {  // weights are finite, says the specification
      if (!std::isfinite(slow::stored(weight, weight.data, i))) std::fill_n(&call.data[i * bits / 8], bits / 8, 0);
    }
    return call;
  }
  weight.block_size = block_size;
  weight.half_scales = (numbers.bits() & 1u) != 0;
  const size_t blocks = (call.inputs + block_size - 1) / block_size * weight.outputs;
  const auto store = [&](float number, std::vector<uint8_t>& bytes, size_t index) {
    if (weight.half_scales) {  // of -1 to 1
      const auto half = static_cast<uint16_t>((numbers.bits() & 0x83ffu) | (numbers.bits() % 16) << 10);
      std::memcpy(bytes.data() + 2 * index, &half, sizeof half);
    } else {
      std::memcpy(bytes.data() + 4 * index, &number, sizeof number);
    }
  };
  call.scales.resize(blocks * (weight.half_scales ? 2 : 4));
  for (size_t i = 0; i < blocks; ++i) store(numbers.moderate(), call.scales, i);
  weight.scales = call.scales.data();
  weight.zero_point = static_cast<float>(numbers.bits() % 256);
  if (with_zero_points) {
    call.zero_points.resize(call.scales.size());
    const bool whole = numbers.bits() % 2 == 0;
    for (size_t i = 0; i < blocks; ++i) {
      const auto code = static_cast<float>(numbers.bits() % 256);
      store(whole ? code : code / 7.0f, call.zero_points, i);
    }
    weight.zero_points = call.zero_points.data();
  }
  return call;
}

// By how much a product of a quantized weight may change where activations are rounded to int8: in each group of
// inputs, half a step of the grid that spans the largest value, for every integer.
double rounding_error(const ProductCall& call, size_t token, size_t column) {
  const Weight& weight = call.weight;
  const size_t group = std::min(weight.block_size, kBlockInputs);
  double error = 0;
  for (size_t first = 0; first < call.inputs; first += group) {
    double largest = 0;
    double integers = 0;
    for (size_t k = first; k < std::min(first + group, call.inputs); ++k) {
      const auto value = static_cast<double>(call.values[token * call.inputs + k]);
      if (value == 0) continue;
      largest = std::max(largest, std::fabs(value));
      integers += std::fabs(slow::weight_at(weight, k, column));
    }
    error += largest / 254 * (1 + 1e-4) * integers;
  }
  return error;
}

// By how much its float32 sums may be off besides: integers and zero points are added up apart from each other.
double difference_error(const ProductCall& call, size_t token, size_t column) {
  const Weight& weight = call.weight;
  double magnitude = 0;
  for (size_t k = 0; k < call.inputs; ++k) {
    const auto value = std::fabs(static_cast<double>(call.values[token * call.inputs + k]));
    const double integer = slow::stored(weight, weight.data, k * weight.outputs + column);
    const double number = integer + std::fabs(slow::zero_point_at(weight, k, column));
    magnitude += value * number * std::fabs(slow::scale_at(weight, k, column));
  }
  return magnitude * 8 * 0x1p-23;
}

void check_product(const ProductCall& call, const std::vector<float>& y, bool shifted, bool int8, const char* by) {
  std::vector<double> row(call.inputs);
  for (size_t c = 0; c < call.weight.outputs; ++c) {
    for (size_t k = 0; k < call.inputs; ++k) row[k] = slow::weight_at(call.weight, k, c);
    for (size_t t = 0; t < call.tokens; ++t) {
      slow::Sum sum;
      sum.add(static_cast<double>(call.bias[c]));
      if (shifted) sum.add(static_cast<double>(call.token_shift[t]) * static_cast<double>(call.offset[c]));
      for (size_t k = 0; k < call.inputs; ++k) {
        const auto value = static_cast<double>(call.values[t * call.inputs + k]);
        if (value != 0) sum.add(value * row[k]);
      }
      // value times scale may underflow on the way
      if (call.weight.block_size != 0) sum.allow(static_cast<double>(call.inputs) * 512 * 0x1p-149);
      if (call.weight.block_size != 0) sum.allow(difference_error(call, t, c));
      if (int8 && call.weight.block_size != 0) sum.allow(rounding_error(call, t, c));
      const float found = y[t * call.weight.outputs + c];
      if (sum.is(found)) continue;
      std::fprintf(stderr, "token %zu of %zu, column %zu of %zu, K = %zu, type %d: %a, not %a of %a\n", t, call.tokens,
                   c, call.weight.outputs, call.inputs, static_cast<int>(call.weight.type), static_cast<double>(found),
                   sum.value(), sum.magnitude());
      fail("product", by);
    }
  }
}

void fuzz_product(FuzzedDataProvider& data) {
  const auto type = static_cast<WeightType>(data.ConsumeIntegralInRange(0, kWeightTypes - 1));
  const size_t workers = data.ConsumeIntegralInRange<size_t>(1, 20);
  const bool int8 = data.ConsumeBool();
  const auto any_candidate = data.ConsumeIntegral<uint8_t>();
  const ProductCall call = product_call(data, type);
  CallBuffers call_buffers;
  WorkerBuffers worker_buffers;
  for (const InstructionSet* isa : instruction_sets()) {
    std::vector<float> y(call.tokens * call.weight.outputs);
    SparseProduct product{};
    product.weight = call.weight;
    product.values = call.values.data();
    product.bias = call.bias.data();
    product.token_shift = call.token_shift.data();
    product.offset = call.offset.data();
    product.y = y.data();
    product.tokens = call.tokens;
    product.inputs = call.inputs;
    product.int8_activations = int8;
    const Candidates all = candidates(*isa, product);
    const Algorithm& algorithm = *all.algorithm[any_candidate % all.count];
    const SparseMatMul matmul(*isa, product, algorithm, workers, Partition::kSplitK, call_buffers);
    for (size_t task = matmul.tasks(); task > 0; --task) matmul.run(task - 1, worker_buffers);
    matmul.finish();
    check_product(call, y, true, int8, isa->name);
  }
}

void fuzz_product_interface(FuzzedDataProvider& data) {
  const int32_t dtype = data.ConsumeIntegralInRange(0, 2);
  const size_t parts = data.ConsumeIntegralInRange<size_t>(1, 9);
  const int broken = data.ConsumeIntegralInRange(0, 15);
  const ProductCall call = product_call(data, static_cast<WeightType>(dtype));
  std::vector<float> y(call.tokens * call.weight.outputs, 7.0f);
  nm_export_sparse_matmul_arguments a{};
  a.values = call.values.data();
  a.weight = call.weight.data;
  a.bias = call.bias.data();
  a.y = y.data();
  a.tokens = call.tokens;
  a.channels = call.inputs;
  a.columns = call.weight.outputs;
  a.dtype = dtype;
  if (broken < 4) {
    size_t part = 0;
    if (broken == 0) a.dtype = data.ConsumeBool() ? -1 : 3 + data.ConsumeIntegralInRange(0, 1000);
    if (broken == 1) a.channels = 0;
    if (broken == 2) a.channels = (size_t{1} << 32) + data.ConsumeIntegral<uint32_t>();
    if (broken == 3) part = parts + data.ConsumeIntegralInRange<size_t>(0, 5);
    require(nm_export_sparse_matmul(&a, part, parts) == NM_EXPORT_INVALID_ARGUMENT, "refusal", "C");
    require(y == std::vector<float>(y.size(), 7.0f), "no writing", "C");
    return;
  }
  for (size_t part = 0; part < parts; ++part) {
    require(nm_export_sparse_matmul(&a, part, parts) == NM_EXPORT_OK, "status", "C");
  }
  check_product(call, y, false, false, "C");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  switch (data.ConsumeIntegralInRange(0, 8)) {
    case 0:
      fuzz_top_k<float>(data);
      break;
    case 1:
      fuzz_top_k<Float16>(data);
      break;
    case 2:
      fuzz_top_k<BFloat16>(data);
      break;
    case 3:
      fuzz_top_k_interface<float>(data, NM_EXPORT_FLOAT32);
      break;
    case 4:
      data.ConsumeBool() ? fuzz_top_k_interface<Float16>(data, NM_EXPORT_FLOAT16)
                         : fuzz_top_k_interface<BFloat16>(data, NM_EXPORT_BFLOAT16);
      break;
    case 5:
      fuzz_keep_mask(data);
      break;
    case 6:
      fuzz_product_interface(data);
      break;
    default:
      fuzz_product(data);
  }
  return 0;
}
