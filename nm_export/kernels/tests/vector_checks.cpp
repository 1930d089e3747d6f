// What isa/vector_concept.h says of VECTOR, function by function, against one number at a time. As in every file that
// is compiled for an instruction set, no inline function of the C++ library is used.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include VECTOR_HEADER

int vector_checks();

namespace nm_export {
namespace {

using V = VECTOR;
constexpr int kWidth = static_cast<int>(V::kWidth);

int failures = 0;

void require(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "wrong: %s\n", what);
}

bool same(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

// Number n of integers without sign.
template <size_t kBits>
int integer(const uint8_t* bytes, int n) {
  return kBits == 8 ? bytes[n] : bytes[n / 2] >> (n % 2 * 4) & 15;
}

// Numbers of all kinds, so long that every pair of kinds meets in some lane.
constexpr int kCount = 64 * 16;
struct Numbers {
  float a[kCount];
  float b[kCount];
  int32_t i[kCount];
  int32_t j[kCount];
  uint8_t bytes[kCount];

  Numbers() {
    const float special[] = {0.0f,   -0.0f,   1.0f,  -1.0f,  INFINITY, -INFINITY, NAN,           -NAN,
                             1e-45f, -2e-45f, 3e38f, -3e38f, 65504.0f, 65520.0f,  1.0009765625f, 6e-8f};
    uint32_t state = 1;
    const auto next = [&] {
      state = state * 1664525u + 1013904223u;
      return state >> 8;
    };
    for (int n = 0; n < kCount; ++n) {
      a[n] = n < kCount / 2 ? special[n % 16] : float_of(next() << 8 | next() % 256);
      b[n] = n < kCount / 2 ? special[n / 16 % 16] : float_of(next() << 8 | next() % 256);
      i[n] = static_cast<int32_t>(next() % 7) - 3;
      j[n] = static_cast<int32_t>(next() % 7) - 3;
      bytes[n] = static_cast<uint8_t>(next());
    }
  }
};

// Lane for lane.
template <class Vectors, class Lane>
void each(const char* what, Vectors vectors, Lane lane) {
  for (int at = 0; at < kCount; at += kWidth) {
    float found[kWidth];
    V::store(found, vectors(at));
    bool holds = true;
    for (int n = 0; n < kWidth; ++n) holds = holds && same(found[n], lane(at + n));
    if (!holds) return require(false, what);
  }
}

template <class Vectors, class Lane>
void each_int(const char* what, Vectors vectors, Lane lane) {
  for (int at = 0; at < kCount; at += kWidth) {
    int32_t found[kWidth];
    V::store_int(found, vectors(at));
    bool holds = true;
    for (int n = 0; n < kWidth; ++n) holds = holds && found[n] == lane(at + n);
    if (!holds) return require(false, what);
  }
}

void check_float(const Numbers& x) {
  const auto a = [&](int at) { return V::load(x.a + at); };
  const auto b = [&](int at) { return V::load(x.b + at); };
  each("load and store", a, [&](int n) { return x.a[n]; });
  each("broadcast", [&](int) { return V::broadcast(-0.0f); }, [](int) { return -0.0f; });
  each("add", [&](int at) { return V::add(a(at), b(at)); }, [&](int n) { return x.a[n] + x.b[n]; });
  each("sub", [&](int at) { return V::sub(a(at), b(at)); }, [&](int n) { return x.a[n] - x.b[n]; });
  each("mul", [&](int at) { return V::mul(a(at), b(at)); }, [&](int n) { return x.a[n] * x.b[n]; });
  const float once = fmaf(1.0009765625f, 1.0009765625f, -1.0f);
  const float factor = V::one(&x.a[14]);
  float fused[kWidth];
  V::store(fused, V::fma(V::broadcast(factor), V::broadcast(factor), V::broadcast(-1.0f)));
  for (const float number : fused) {
    require(number == once || number == factor * factor - 1.0f, "fma is rounded once or twice");
    require(number == fused[0], "fma is the same in every lane");
  }
  for (int at = 0; at < kCount; at += kWidth) {
    V::store(fused, V::fma(a(at), b(at), V::broadcast(0.0f)));
    for (int n = 0; n < kWidth; ++n) {
      const float twice = x.a[at + n] * x.b[at + n] + 0.0f;
      require(same(fused[n], fmaf(x.a[at + n], x.b[at + n], 0.0f)) || same(fused[n], twice), "fma of special numbers");
    }
  }
  for (int at = 0; at < kCount; at += kWidth) {
    bool nan = false;
    uint32_t bits = 0;
    for (int n = 0; n < kWidth; ++n) {
      nan = nan || x.a[at + n] != x.a[at + n];
      if (x.a[at + n] != 0.0f) bits |= 1u << n;
    }
    require(V::any_nan(a(at)) == nan, "any_nan");
    require(V::nonzero(a(at)) == bits, "nonzero");
    float kept[kWidth];
    V::store(kept, V::where(0xfffff5a5u, a(at)));
    for (int n = 0; n < kWidth; ++n) {
      require(same(kept[n], 0xf5a5u >> n & 1u ? x.a[at + n] : 0.0f), "where");
    }
  }
  each_int(
      "less", [&](int at) { return V::increment_where(V::less(a(at), b(at)), V::broadcast_int(0)); },
      [&](int n) { return x.a[n] < x.b[n] ? 1 : 0; });
  const auto score = [&](int n) { return float_of(static_cast<uint32_t>(bits_of(x.b[n]) & kMagnitudeBits)); };
  for (int at = 0; at < kCount; at += kWidth) {
    float scores[kWidth];
    for (int n = 0; n < kWidth; ++n) scores[n] = score(at + n);
    int32_t keys[kWidth];
    V::store_int(keys, V::key(a(at), V::load(scores)));
    for (int n = 0; n < kWidth; ++n) require(keys[n] == key_of(x.a[at + n], score(at + n)), "key");
  }
}

// By arithmetic that has nothing to do with the conversions that are tested.
double value_of(Float16 number) {
  const int exponent = number.bits >> 10 & 31;
  const int mantissa = number.bits & 1023;
  double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) magnitude = mantissa == 0 ? static_cast<double>(INFINITY) : static_cast<double>(NAN);
  return number.bits >> 15 == 0 ? magnitude : -magnitude;
}

void check_halves(const Numbers& x) {
  static Float16 half[65536];
  static BFloat16 bfloat[65536];
  for (int n = 0; n < 65536; ++n) half[n].bits = bfloat[n].bits = static_cast<uint16_t>(n);
  for (int at = 0; at < 65536; at += kWidth) {
    float wide[kWidth], wide_bfloat[kWidth];
    V::store(wide, V::load(half + at));
    V::store(wide_bfloat, V::load(bfloat + at));
    Float16 again[kWidth];
    V::store_float16(again, V::load(wide));
    for (int n = 0; n < kWidth; ++n) {
      const float expected = static_cast<float>(value_of(half[at + n]));
      require(same(wide[n], expected) && same(V::one(half + at + n), expected), "float16 widened");
      const float expected_bfloat = float_of(static_cast<uint32_t>(at + n) << 16);
      require(same(wide_bfloat[n], expected_bfloat) && same(V::one(bfloat + at + n), expected_bfloat),
              "bfloat16 widened");
      if (expected != expected) {
        require((again[n].bits & 0x7e00u) == 0x7e00u, "float16 of a NaN");
      } else {
        require(again[n].bits == half[at + n].bits, "float16 and back");
      }
    }
  }
  for (int at = 0; at < kCount; at += kWidth) {
    Float16 narrow[kWidth];
    V::store_float16(narrow, V::load(x.a + at));
    for (int n = 0; n < kWidth; ++n) {
      const auto wanted = static_cast<double>(x.a[at + n]);
      const double found = value_of(narrow[n]);
      if (wanted != wanted) {
        require(found != found, "float16 of a NaN");
      } else if (fabs(wanted) >= 65520) {
        require(fabs(found) == static_cast<double>(INFINITY), "float16 of what is too large");
      } else {
        const double step = fabs(wanted) < 0x1p-14 ? 0x1p-24 : ldexp(1.0, ilogb(wanted) - 10);
        require(fabs(found - wanted) <= step / 2, "float16 to nearest");
      }
    }
  }
}

void check_int(const Numbers& x) {
  const auto i = [&](int at) { return V::load_int(x.i + at); };
  const auto j = [&](int at) { return V::load_int(x.j + at); };
  const auto bit = [] { return V::broadcast_int(4); };
  each_int("load_int and store_int", i, [&](int n) { return x.i[n]; });
  each_int("add_int", [&](int at) { return V::add_int(i(at), j(at)); }, [&](int n) { return x.i[n] + x.j[n]; });
  each_int("sub_int", [&](int at) { return V::sub_int(i(at), j(at)); }, [&](int n) { return x.i[n] - x.j[n]; });
  each_int(
      "max_int", [&](int at) { return V::max_int(i(at), j(at)); },
      [&](int n) { return x.i[n] > x.j[n] ? x.i[n] : x.j[n]; });
  each_int(
      "min_int", [&](int at) { return V::min_int(i(at), j(at)); },
      [&](int n) { return x.i[n] < x.j[n] ? x.i[n] : x.j[n]; });
  each_int(
      "greater and increment_where", [&](int at) { return V::increment_where(V::greater(i(at), j(at)), i(at)); },
      [&](int n) { return x.i[n] + (x.i[n] > x.j[n] ? 1 : 0); });
  each_int(
      "equal and decrement_where", [&](int at) { return V::decrement_where(V::equal(i(at), j(at)), i(at)); },
      [&](int n) { return x.i[n] - (x.i[n] == x.j[n] ? 1 : 0); });
  each_int(
      "increment_unless", [&](int at) { return V::increment_unless(V::equal(i(at), j(at)), i(at)); },
      [&](int n) { return x.i[n] + (x.i[n] == x.j[n] ? 0 : 1); });
  each_int(
      "both and clear_where",
      [&](int at) {
        return V::clear_where(V::both(V::greater(i(at), j(at)), V::greater(j(at), V::broadcast_int(0))), i(at), bit());
      },
      [&](int n) { return x.i[n] > x.j[n] && x.j[n] > 0 ? x.i[n] & ~4 : x.i[n]; });
  each_int(
      "or_unless", [&](int at) { return V::or_unless(V::greater(i(at), j(at)), i(at), bit()); },
      [&](int n) { return x.i[n] > x.j[n] ? x.i[n] : x.i[n] | 4; });
  require(!V::any_positive(V::broadcast_int(0)) && !V::any_positive(V::broadcast_int(-1)), "any_positive of none");
  int32_t one[kWidth] = {};
  one[kWidth - 1] = 1;
  require(V::any_positive(V::load_int(one)), "any_positive of one");
  constexpr int kStrides[] = {4, 5, 20};
  for (const int m : kStrides) {
    V::Int channel[4];
    V::load_four_channels(x.i, m, channel);
    for (int c = 0; c < 4; ++c) {
      int32_t four[kWidth], single[kWidth];
      V::store_int(four, channel[c]);
      V::store_int(single, V::load_channel(x.i + c, m));
      for (int g = 0; g < kWidth; ++g) {
        require(four[g] == x.i[g * m + c] && single[g] == x.i[g * m + c], "load_four_channels and load_channel");
      }
    }
  }
}

void check_double(const Numbers& x) {
  constexpr int kDoubles = static_cast<int>(V::kDoubles);
  const auto same_double = [](double a, double b) { return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); };
  for (int at = 0; at < kCount; at += kDoubles) {
    const auto a = V::widen(x.a + at);
    const auto b = V::widen(x.b + at);
    double sum[kDoubles], difference[kDoubles], product[kDoubles];
    V::store_double(sum, V::add_double(a, b));
    V::store_double(difference, V::sub_double(a, V::broadcast_double(0.1)));
    V::store_double(product, V::mul_double(a, b));
    for (int n = 0; n < kDoubles; ++n) {
      const auto p = static_cast<double>(x.a[at + n]), q = static_cast<double>(x.b[at + n]);
      require(same_double(sum[n], p + q), "add_double");
      require(same_double(difference[n], p - 0.1), "sub_double");
      require(same_double(product[n], p * q), "mul_double");
    }
  }
}

// The rest is what only some instruction sets have. Functions are templates so that what is missing is not looked for.

template <class Vector, int kM>
void check_of_groups(const Numbers& x) {
  for (int v = 0; v < kM; ++v) {
    int32_t found[kWidth];
    Vector::store_int(found, Vector::template of_groups<kM>(x.i, v));
    for (int n = 0; n < kWidth; ++n) require(found[n] == x.i[(v * kWidth + n) / kM], "of_groups");
  }
}

template <class Vector>
void check_bits(const Numbers& x) {
  if constexpr (Vector::kComparesToBits) {
    for (int at = 0; at < kCount; at += kWidth) {
      uint32_t bits = 0;
      int count = 0;
      for (int n = 0; n < kWidth; ++n) {
        if (x.i[at + n] >= x.j[at + n]) bits |= 1u << n;
        count += x.i[at + n] >= x.j[at + n] ? 1 : 0;
      }
      const uint32_t found = Vector::at_least(Vector::load_int(x.i + at), Vector::load_int(x.j + at));
      require(found == bits, "at_least");
      require(Vector::count_bits(found) == count, "count_bits");
    }
    check_of_groups<Vector, 4>(x);
    check_of_groups<Vector, 8>(x);
    check_of_groups<Vector, 16>(x);
    check_of_groups<Vector, 32>(x);
  }
  if constexpr (Vector::kCompresses) {
    for (int at = 0; at < kCount; at += kWidth) {
      const auto v = Vector::load(x.a + at);
      uint32_t between = 0;
      for (int n = 0; n < kWidth; ++n)
        if (x.a[at + n] >= -1.0f && !(x.a[at + n] >= 1e-3f)) between |= 1u << n;
      require(Vector::at_least_and_below(v, Vector::broadcast(-1.0f), Vector::broadcast(1e-3f)) == between,
              "at_least_and_below");
      const uint32_t bits = 0xb2e5u & ((1u << kWidth) - 1);
      float kept[kWidth];
      int32_t kept_int[kWidth];
      Vector::store(kept, Vector::compress(bits, v));
      Vector::store_int(kept_int, Vector::compress_int(bits, Vector::first_integers()));
      int count = 0;
      for (int n = 0; n < kWidth; ++n) {
        if ((bits >> n & 1u) == 0) continue;
        require(same(kept[count], x.a[at + n]) && kept_int[count] == n, "compress and first_integers");
        ++count;
      }
      for (int n = count; n < kWidth; ++n) require(bits_of(kept[n]) == 0 && kept_int[n] == 0, "compress: +0 behind");
    }
  }
}

template <class Vector, size_t kBits>
void check_integers(const Numbers& x) {
  for (int at = 0; at + kWidth <= kCount; at += kWidth) {
    float found[kWidth];
    Vector::store(found, Vector::template integers<kBits>(x.bytes + at));
    for (int n = 0; n < kWidth; ++n)
      require(found[n] == static_cast<float>(integer<kBits>(x.bytes + at, n)), "integers");
  }
}

// Sums of as many dot4s as a block of inputs has, in the extreme too: what is added on the way must not overflow.
template <class Vector, size_t kBits>
void check_dot4_sums(const Numbers& x) {
  using Sums = typename Vector::template Dot4Sums<kBits>;
  constexpr int kOutputs = static_cast<int>(Sums::kOutputs);
  constexpr int kBytes = kOutputs * static_cast<int>(kBits) / 8;
  constexpr size_t kDot4s = 16;
  for (int round = 0; round < 8; ++round) {
    const int some = Vector::kLoadsFew && round % 2 == 1 ? 5 : kBytes;
    uint8_t rows[kDot4s][4][kBytes];
    Sums sums;
    int expected[kOutputs] = {};
    for (size_t q = 0; q < kDot4s; ++q) {
      const uint8_t* row[4];
      uint32_t dot4 = 0;
      for (int r = 0; r < 4; ++r) {
        for (int n = 0; n < kBytes; ++n) {
          rows[q][r][n] = round < 2 ? 255 : x.bytes[(static_cast<int>(q) * 61 + r * 17 + round * 113 + n) % kCount];
        }
        const int any = static_cast<int>(x.bytes[q * 4 + static_cast<size_t>(r + round * 64)]) - 128;
        const int activation = round < 2 ? (round == 0 ? 127 : -127) : any == -128 ? 0 : any;
        dot4 |= (static_cast<uint32_t>(activation) & 0xffu) << (8 * r);
        for (int n = 0; n < some * 8 / static_cast<int>(kBits); ++n) {
          expected[n] += activation * integer<kBits>(rows[q][r], n);
        }
        row[r] = rows[q][r] - 3;
      }
      const uint32_t pairs[2] = {(dot4 & 0xffffu) * 0x10001u, (dot4 >> 16) * 0x10001u};
      sums.add(row, 3, static_cast<size_t>(some), dot4, pairs);
      if ((q + 1) % Sums::kMostAdds == 0) sums.widen();
    }
    sums.widen();
    typename Vector::Int v[kOutputs / kWidth];
    int32_t found[kOutputs];
    sums.in_order(v);
    for (int i = 0; i < kOutputs / kWidth; ++i) Vector::store_int(found + i * kWidth, v[i]);
    for (int n = 0; n < kOutputs; ++n) require(found[n] == expected[n], "Dot4Sums");
  }
}

template <class Vector>
void check_few(const Numbers& x) {
  Float16 halves[kWidth];
  float of_halves[kWidth];
  for (int n = 0; n < kWidth; ++n) {
    halves[n].bits = static_cast<uint16_t>(0x3c00 + 7 * n);
    of_halves[n] = Vector::one(halves + n);
  }
  for (int count = 0; count <= kWidth; ++count) {
    float found[kWidth], found_halves[kWidth], stored[kWidth];
    const auto few = static_cast<size_t>(count);
    Vector::store(found, Vector::load_few(x.b, few));
    Vector::store(found_halves, Vector::load_few(halves, few));
    for (float& number : stored) number = 7.0f;
    Vector::store_few(stored, few, Vector::load(x.b));
    for (int n = 0; n < kWidth; ++n) {
      require(same(found[n], n < count ? x.b[n] : 0.0f), "load_few");
      require(same(found_halves[n], n < count ? of_halves[n] : 0.0f), "load_few of float16");
      require(same(stored[n], n < count ? x.b[n] : 7.0f), "store_few");
    }
  }
}

template <class Vector>
void check_dots(const Numbers& x) {
  if constexpr (Vector::kDots4) {
    each(
        "to_float", [&](int at) { return Vector::to_float(Vector::load_int(x.i + at)); },
        [&](int n) { return static_cast<float>(x.i[n]); });
    check_dot4_sums<Vector, 8>(x);
    check_dot4_sums<Vector, 4>(x);
    if constexpr (Vector::kLoadsFew) check_few<Vector>(x);
  }
}

}  // namespace
}  // namespace nm_export

int vector_checks() {
  using namespace nm_export;
  static const Numbers numbers;
  check_float(numbers);
  check_halves(numbers);
  check_int(numbers);
  check_double(numbers);
  check_bits<V>(numbers);
  check_integers<V, 8>(numbers);
  check_integers<V, 4>(numbers);
  check_dots<V>(numbers);
  return failures;
}
