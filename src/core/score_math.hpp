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

// The larger and the smaller of two numbers.
MIXLANE_ANYWHERE float at_least(float x, float low) {
#if defined(__CUDA_ARCH__)
  return fmaxf(x, low);
#else
  return x < low ? low : x;
#endif
}
MIXLANE_ANYWHERE float at_most(float x, float high) {
#if defined(__CUDA_ARCH__)
  return fminf(x, high);
#else
  return x > high ? high : x;
#endif
}

// exp(x) = fraction * 2^n, the fraction within 0.7 .. 1.5; for |x| < 2^20.
struct SplitExp {
  float fraction;
  uint32_t exponent;  // n << 23, modulo 2^32
};

MIXLANE_ANYWHERE SplitExp split_exp(float x) {
  constexpr float kToInteger = 0x1.8p23f;  // its ulp is 1, so that n stands in the lowest bits of the sum
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
  return {sum, std::bit_cast<uint32_t>(shifted) << 23};
}

// exp(x) for x <= 0, within 0.7 ulp from -87 on, within 2^-149 below. x is not NaN.
MIXLANE_ANYWHERE float exp_f32(float x) {
  const SplitExp split = split_exp(at_least(x, -104.0f));
  // 2^(n + 32), a normal number, and the rest in a second step, which may round to a subnormal one.
  const float power = std::bit_cast<float>(split.exponent + ((127u + 32u) << 23));
  return product(product(split.fraction, power), 0x1p-32f);
}

// exp(x - max) for x <= max: what the subtraction rounds off is made good, as it may be more than an ulp of the result.
MIXLANE_ANYWHERE float exp_below(float x, float max) {
  const float difference = x - max;
  const float part = x - difference;
  const float rounded_off = (x - (difference + part)) + (part - max);
  const float result = exp_f32(difference);
  return difference > -200.0f ? fused(result, rounded_off, result) : result;
}

// 1 / x for x in 1 .. 2^127, correctly rounded; 0 above 2^126, where it would be subnormal.
MIXLANE_ANYWHERE float reciprocal_of_large(float x) {
#if defined(__CUDA_ARCH__)
  // What a division does without its checks: they are branches, which keep neighbouring values from overlapping. The
  // first guess is within an ulp and 0 instead of subnormal; no sum of 1 and an exponential is that near to 2^126.
  float guess;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
  return fused(guess, fused(-x, guess, 1.0f), guess);
#else
  return x > 0x1p126f ? 0.0f : 1.0f / x;
#endif
}

// 1 / (1 + exp(-x)), within 1.5 ulp; 0 below -87.34.
MIXLANE_ANYWHERE float sigmoid_f32(float x) {
  const SplitExp split = split_exp(at_most(at_least(-x, -86.0f), 88.0f));
  return reciprocal_of_large(1.0f + std::bit_cast<float>(std::bit_cast<uint32_t>(split.fraction) + split.exponent));
}

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
