// Exponential functions in f32 that give the same bits on CPUs and GPUs: IEEE operations alone, in one order, fused where
// it is written. What ranks by their values (router scores) then decides alike on every device.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MIXLANE_ANYWHERE __host__ __device__ inline __attribute__((always_inline))
#else
#define MIXLANE_ANYWHERE inline __attribute__((always_inline))
#endif

namespace mixlane {

MIXLANE_ANYWHERE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// A product that is not fused with what it is added to, whatever the compiler's habits.
MIXLANE_ANYWHERE float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;  // built with -ffp-contract=off
#endif
}

// 2^n for n in -126 .. 127.
MIXLANE_ANYWHERE float power_of_two(int32_t n) { return std::bit_cast<float>((n + 127) << 23); }

// Within 0.7 ulp from -87 on, within 2^-149 below; infinite from 88.73 on. x is not NaN.
MIXLANE_ANYWHERE float exp_f32(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float kToInteger = 0x1.8p23f;  // its ulp is 1
  const float shifted = fused(x, 0x1.715476p0f, kToInteger);
  const float whole = shifted - kToInteger;
  // ln 2 in two parts, the first one short, so that its product is exact.
  float rest = fused(whole, -0x1.63p-1f, x);
  rest = fused(whole, 0x1.bd0106p-13f, rest);
  float sum = 1.0f / 5040;
  sum = fused(sum, rest, 1.0f / 720);
  sum = fused(sum, rest, 1.0f / 120);
  sum = fused(sum, rest, 1.0f / 24);
  sum = fused(sum, rest, 1.0f / 6);
  sum = fused(sum, rest, 0.5f);
  sum = fused(sum, rest, 1.0f);
  sum = fused(sum, rest, 1.0f);
  const auto n = static_cast<int32_t>(whole);
  const int32_t half = n >> 1;
  return product(product(sum, power_of_two(half)), power_of_two(n - half));
}

// exp(x - max) for x <= max: what the subtraction rounds off is made good, as it may be more than an ulp of the result.
MIXLANE_ANYWHERE float exp_below(float x, float max) {
  const float difference = x - max;
  const float part = x - difference;
  const float rounded_off = (x - (difference + part)) + (part - max);
  const float result = exp_f32(difference);
  return difference > -200.0f ? fused(result, rounded_off, result) : result;
}

// 1 / (1 + exp(-x)), within 1.5 ulp; 0 below -88.73.
MIXLANE_ANYWHERE float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// log(1 + exp(x)), within 2 ulp: the logarithm by 2 atanh(y / (2 + y)), whose argument is at most 1/3.
MIXLANE_ANYWHERE float softplus_f32(float x) {
  const float y = exp_f32(x < 0.0f ? x : -x);
  const float z = y / (2.0f + y);
  const float square = product(z, z);
  float sum = 1.0f / 17;
  sum = fused(sum, square, 1.0f / 15);
  sum = fused(sum, square, 1.0f / 13);
  sum = fused(sum, square, 1.0f / 11);
  sum = fused(sum, square, 1.0f / 9);
  sum = fused(sum, square, 1.0f / 7);
  sum = fused(sum, square, 1.0f / 5);
  sum = fused(sum, square, 1.0f / 3);
  sum = fused(sum, square, 1.0f);
  return fused(2.0f * z, sum, x > 0.0f ? x : 0.0f);
}

}  // namespace mixlane
