// docs/semantics.md once more, without a thought for speed: what tests compare the kernels with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "element_types.h"
#include "product/weight.h"

namespace nm_export::slow {

inline double value_of(float value) { return static_cast<double>(value); }
inline double value_of(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return static_cast<double>(wide);
}
inline double value_of(Float16 value) {
  const int exponent = value.bits >> 10 & 31;
  const int mantissa = value.bits & 1023;
  double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return value.bits >> 15 == 0 ? magnitude : -magnitude;
}

// By how much rounding to T may change a number.
template <class T>
double half_step(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  if constexpr (std::is_same_v<T, float>) return std::ldexp(1.0, std::max(exponent - 25, -150));
  if constexpr (std::is_same_v<T, Float16>) return std::ldexp(1.0, std::max(exponent - 12, -25));
  return std::ldexp(1.0, std::max(exponent - 9, -134));
}

// From here on a number rounds to infinity.
template <class T>
double overflow() {
  if constexpr (std::is_same_v<T, float>) return std::ldexp(2.0 - std::ldexp(1.0, -24), 127);
  if constexpr (std::is_same_v<T, Float16>) return 65520.0;
  return std::ldexp(2.0 - std::ldexp(1.0, -8), 127);
}

// Whether `found` is `expected`, which is known to a relative error, rounded to T.
template <class T>
bool is_rounded(T found, double expected, double relative_error) {
  const double value = value_of(found);
  if (std::isnan(expected)) return std::isnan(value);
  if (std::isinf(expected)) return value == expected;
  const double error = std::fabs(expected) * relative_error;
  if (std::isinf(value)) {
    return std::signbit(value) == std::signbit(expected) && std::fabs(expected) + error >= overflow<T>();
  }
  if (std::fabs(expected) - error >= overflow<T>()) return false;
  return std::fabs(value - expected) <= half_step<T>(expected) * (1 + 1e-9) + error;
}

inline double sum_of(const std::vector<float>& v) {
  double sum = 0;
  for (const float value : v) sum += static_cast<double>(value);
  return sum;
}

// Whether e is the mean of v, whose sum in float64 may have been taken in any order.
inline bool is_mean(float e, const std::vector<float>& v) {
  double magnitude = 0;
  for (const float value : v) magnitude += std::fabs(static_cast<double>(value));
  const double mean = sum_of(v) / static_cast<double>(v.size());
  if (!std::isfinite(mean)) return std::isnan(mean) ? std::isnan(e) : static_cast<double>(e) == mean;
  return std::fabs(static_cast<double>(e) - mean) <= half_step<float>(mean) * (1 + 1e-9) + std::ldexp(magnitude, -48);
}

// The lower median; NaN where v holds one.
inline float median(std::vector<float> v) {
  if (std::any_of(v.begin(), v.end(), [](float a) { return std::isnan(a); })) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  std::sort(v.begin(), v.end());
  return v[(v.size() - 1) / 2];
}

// Which channels are kept, from their scores.
inline std::vector<bool> keep(const std::vector<float>& scores, size_t n, size_t m, bool strided = false) {
  std::vector<bool> kept(scores.size());
  const size_t groups = scores.size() / m;
  for (size_t group = 0; group < groups; ++group) {
    std::vector<size_t> order(m);
    for (size_t i = 0; i < m; ++i) order[i] = strided ? group + i * groups : group * m + i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      if (std::isnan(scores[a]) || std::isnan(scores[b])) return std::isnan(scores[a]) && !std::isnan(scores[b]);
      return scores[a] > scores[b];
    });
    for (size_t i = 0; i < n; ++i) kept[order[i]] = true;
  }
  return kept;
}

inline double variance(const std::vector<float>& v) {
  const auto count = static_cast<double>(v.size());
  const double mean = sum_of(v) / count;
  double sum = 0;
  for (const float value : v) sum += (static_cast<double>(value) - mean) * (static_cast<double>(value) - mean);
  return sum / count;
}

inline double variance_ratio(const std::vector<float>& z, const std::vector<float>& p) {
  const double whole = variance(z);
  const double part = variance(p);
  if (!std::isfinite(whole) || !std::isfinite(part) || whole == 0 || part == 0) return 1;
  const double ratio = std::sqrt(whole / part);
  return ratio >= overflow<float>() ? std::numeric_limits<double>::infinity() : ratio;
}

// A weight as it is stored: what integer `index` is, or what a 16-bit number is.
inline double stored(const Weight& weight, const void* data, size_t index) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint16_t half = 0;
  float single = 0;
  switch (weight.type) {
    case WeightType::kFloat32:
      std::memcpy(&single, bytes + 4 * index, sizeof single);
      return value_of(single);
    case WeightType::kFloat16:
    case WeightType::kBFloat16:
      std::memcpy(&half, bytes + 2 * index, sizeof half);
      return weight.type == WeightType::kFloat16 ? value_of(Float16{half}) : value_of(BFloat16{half});
    case WeightType::kUInt8:
      return bytes[index];
    default:
      return index % 2 == 0 ? bytes[index / 2] & 15 : bytes[index / 2] >> 4;
  }
}

// A scale or zero point.
inline double number_at(const Weight& weight, const void* data, size_t index) {
  if (weight.half_scales) return value_of(static_cast<const Float16*>(data)[index]);
  return value_of(static_cast<const float*>(data)[index]);
}

inline double scale_at(const Weight& weight, size_t channel, size_t column) {
  return number_at(weight, weight.scales, channel / weight.block_size * weight.outputs + column);
}

inline double zero_point_at(const Weight& weight, size_t channel, size_t column) {
  if (weight.zero_points == nullptr) return static_cast<double>(weight.zero_point);
  return number_at(weight, weight.zero_points, channel / weight.block_size * weight.outputs + column);
}

inline double weight_at(const Weight& weight, size_t channel, size_t column) {
  const double number = stored(weight, weight.data, channel * weight.outputs + column);
  if (weight.block_size == 0) return number;
  return scale_at(weight, channel, column) * (number - zero_point_at(weight, channel, column));
}

// Sums what a product adds up, and what float32 may make of it.
class Sum {
 public:
  void add(double term) {
    sum_ += term;
    if (std::isfinite(term)) magnitude_ += std::fabs(term);
    ++terms_;
  }

  // Allows for a term that is known to `error` only.
  void allow(double error) { allowed_ += error; }

  // Whether `found` is a float32 sum of the terms, in any order. Where sums on the way can overflow, any number is.
  bool is(float found) const {
    if (std::isnan(sum_)) return std::isnan(found);
    if (magnitude_ > 1e38) return true;
    if (std::isinf(sum_)) return static_cast<double>(found) == sum_;
    const double steps = 2 * static_cast<double>(terms_) + 4;
    return std::fabs(static_cast<double>(found) - sum_) <=
           allowed_ + (allowed_ + magnitude_) * steps * 0x1p-24 + steps * 0x1p-148;
  }

  double value() const { return sum_; }
  double magnitude() const { return magnitude_; }

 private:
  double sum_ = 0;
  double allowed_ = 0;
  double magnitude_ = 0;  // of the finite terms
  size_t terms_ = 0;
};

}  // namespace nm_export::slow
