// The small float formats against independent definitions: tables and exhaustive search for the nearest value.
#include "core/numeric.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

namespace mixlane {
namespace {

// The value of an e4m3 code by the format's definition.
double e4m3_definition(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}

// The code whose value is nearest to x; of two equally near ones the even code. Codes 0..max_code ascend in value.
template <class Value>
int nearest_even_code(double x, int max_code, Value value) {
  int best = 0;
  for (int code = 1; code <= max_code; ++code) {
    const double d = std::fabs(value(code) - x), b = std::fabs(value(best) - x);
    if (d < b || (d == b && code % 2 == 0)) best = code;
  }
  return best;
}

std::vector<float> interesting_floats() {
  std::vector<float> values{0.0f, 0x1p-149f, 0x1p-126f, 1e-10f, 447.9f, 448.0f, 463.9f, 464.0f, 1e30f};
  for (int code = 0; code < 127; ++code) {  // every e4m3 value, every midpoint and both neighbours of each
    const auto low = static_cast<float>(e4m3_definition(code));
    const float middle = code < 126 ? static_cast<float>((e4m3_definition(code) + e4m3_definition(code + 1)) / 2) : low;
    for (const float v : {low, middle}) {
      values.push_back(v);
      values.push_back(std::nextafter(v, 0.0f));
      values.push_back(std::nextafter(v, 1e30f));
    }
  }
  std::mt19937 rng(7);
  std::uniform_real_distribution<float> exponent(-14.0f, 10.0f);
  for (int i = 0; i < 20000; ++i) values.push_back(std::exp2(exponent(rng)));
  return values;
}

TEST(E4m3, DecodesEveryCode) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, static_cast<float>(e4m3_definition(code))) << code;
      EXPECT_EQ(std::signbit(value), code >= 128) << code;
    }
  }
}

TEST(E4m3, EncodesToNearestEvenAndSaturates) {
  for (const float value : interesting_floats()) {
    const int expected = nearest_even_code(std::min(value, 448.0f), 126, e4m3_definition);
    EXPECT_EQ(f32_to_e4m3(value), expected) << value;
    EXPECT_EQ(f32_to_e4m3(-value), expected | 128) << -value;
  }
  EXPECT_EQ(f32_to_e4m3(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_EQ(f32_to_e4m3(-std::numeric_limits<float>::infinity()), 0xfe);
  EXPECT_EQ(f32_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
}

// The value of a finite f16 code by the format's definition.
double f16_definition(int code) {
  const int exponent = (code >> 10) & 31, mantissa = code & 1023;
  return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(F16, DecodesEveryCode) {
  for (int code = 0; code < 0x7c00; ++code) {
    EXPECT_EQ(f16_to_f32(static_cast<uint16_t>(code)), f16_definition(code)) << code;
    EXPECT_EQ(f16_to_f32(static_cast<uint16_t>(code | 0x8000)), -f16_definition(code)) << code;
  }
  EXPECT_TRUE(std::signbit(f16_to_f32(0x8000)));
  EXPECT_EQ(f16_to_f32(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(f16_to_f32(0xfc00), -std::numeric_limits<float>::infinity());
  for (int code = 0x7c01; code < 0x8000; ++code) EXPECT_TRUE(std::isnan(f16_to_f32(static_cast<uint16_t>(code)))) << code;
}

TEST(F16, EncodesToNearestEven) {
  const auto check = [](double value, int want) {
    EXPECT_EQ(f32_to_f16(static_cast<float>(value)), want) << value;
    EXPECT_EQ(f32_to_f16(static_cast<float>(-value)), want | 0x8000) << -value;
  };
  for (int code = 0; code < 0x7c00; ++code) {  // every value, every midpoint (the largest one's is 65520) and its neighbours
    const double low = f16_definition(code), high = code == 0x7bff ? 65536.0 : f16_definition(code + 1);
    const auto middle = static_cast<float>((low + high) / 2);
    check(low, code);
    check(middle, code + code % 2);
    check(std::nextafter(middle, 0.0f), code);
    check(std::nextafter(middle, 1e30f), code + 1);
  }
  check(0x1p-149, 0);
  check(1e30, 0x7c00);
  check(std::numeric_limits<double>::infinity(), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::quiet_NaN()), 0x7e00);
  EXPECT_EQ(f32_to_f16(std::bit_cast<float>(0xff800001u)), 0xfe00);
}

TEST(Bf16, EncodesToNearestEvenAndKeepsNaN) {
  for (uint32_t high = 0; high < 0x7f80u; ++high) {
    const uint32_t bits = high << 16;
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(bits)), high);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(bits + 0x7fffu)), high);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(bits + 0x8000u)), high + high % 2);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(bits + 0x8001u)), high + 1);
  }
  EXPECT_EQ(f32_to_bf16(-std::numeric_limits<float>::infinity()), 0xff80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7f800001u)), 0x7fc0);
}

TEST(E2m1, EncodesToNearestEvenAndSaturates) {
  const double values[] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  const auto value_of = [&](int code) { return values[code]; };
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(e2m1_to_f32(static_cast<uint8_t>(code)), code < 8 ? values[code] : -values[code - 8]) << code;
    EXPECT_EQ(std::signbit(e2m1_to_f32(static_cast<uint8_t>(code))), code >= 8) << code;
  }
  for (const float value : interesting_floats()) {
    const int expected = nearest_even_code(std::min(value, 6.0f), 7, value_of);
    EXPECT_EQ(f32_to_e2m1(value), expected) << value;
    EXPECT_EQ(f32_to_e2m1(-value), expected | 8) << -value;
  }
  EXPECT_EQ(f32_to_e2m1(std::numeric_limits<float>::quiet_NaN()) & 7, 7);
}

TEST(E8m0, IsAPowerOfTwo) {
  for (int code = 0; code < 255; ++code) EXPECT_EQ(e8m0_to_f32(static_cast<uint8_t>(code)), std::ldexp(1.0f, code - 127));
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
}

TEST(Bf16, RoundsToNearestEven) {
  std::mt19937 rng(3);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (!std::isfinite(value)) continue;
    const uint32_t low = std::bit_cast<uint32_t>(value) & 0xffff0000u;
    const float down = std::bit_cast<float>(low), up = std::bit_cast<float>(low + 0x10000u);
    const double to_down = std::fabs(static_cast<double>(value) - down);
    // At the top of the range the upper neighbour is the infinity, which stands for 2^128 here.
    const double to_up = std::fabs((std::isinf(up) ? std::copysign(0x1p128, up) : static_cast<double>(up)) - value);
    const bool take_down = to_down < to_up || (to_down == to_up && (low >> 16) % 2 == 0);
    EXPECT_EQ(f32_to_bf16(value), (take_down ? low : low + 0x10000u) >> 16) << value;
  }
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Bf16, RoundsADoubleOnce) {
  // Just above the midpoint of two bf16 values, by less than an f32 can tell: two roundings would go down.
  const double above_middle = 1.0 + 0x1p-8 + 0x1p-40;
  EXPECT_EQ(f64_to_bf16(above_middle), f32_to_bf16(1.0f) + 1);
  EXPECT_EQ(f32_to_bf16(static_cast<float>(above_middle)), f32_to_bf16(1.0f));
  EXPECT_EQ(f64_to_bf16(-above_middle), f32_to_bf16(-1.0f) + 1);
  EXPECT_EQ(f64_to_bf16(1.0 + 0x1p-8), f32_to_bf16(1.0f));
  const double below_middle = 1.0 + 0x1p-7 + 0x1p-8 - 0x1p-40;  // rounds to f32's midpoint, and from there up to even
  EXPECT_EQ(f64_to_bf16(below_middle), f32_to_bf16(1.0f) + 1);
  EXPECT_EQ(f64_to_bf16(0.0), 0);
  EXPECT_EQ(f64_to_bf16(1e300), 0x7f80);
}

}  // namespace
}  // namespace mixlane
