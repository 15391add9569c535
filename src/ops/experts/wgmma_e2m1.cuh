// e2m1 codes as bf16, exactly.
#pragma once

#include <cstdint>

namespace mixlane::experts_gpu {

// Four pairs {i, i + 4} of eight e2m1 codes, as bf16 times 2^-126: exponent and mantissa bits where bf16 has its lowest of
// the one and highest of the other, the sign on top. A code's subnormal becomes a subnormal. The products are shifts to both
// places at once.
__device__ inline void decode_codes(uint32_t codes, uint32_t (&pairs)[4]) {
  constexpr uint32_t kSignAndMagnitude = 0x81c081c0u;
#pragma unroll
  for (int i = 0; i < 4; i += 2, codes >>= 8) {
    pairs[i] = (codes & 0x000f000fu) * ((1u << 12) + (1u << 6)) & kSignAndMagnitude;
    pairs[i + 1] = (codes & 0x00f000f0u) * ((1u << 8) + (1u << 2)) & kSignAndMagnitude;
  }
}

// Two bf16 of 2^(exponent - 127), for exponents 1 to 254.
__device__ inline uint32_t power_of_two(uint32_t exponent) { return exponent * 0x00800080u; }

__device__ inline uint32_t multiply_pair(uint32_t pair, uint32_t factor) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(factor));
  return product;
}

// Pairs of decode_codes() times 2^126 and 2^(scale - 127), exact; 255 is a NaN. A factor takes scales up to 128.
template <bool kLarge>
__device__ void scale_pairs(uint32_t scale, uint32_t (&pairs)[4]) {
  const uint32_t factor = power_of_two((kLarge ? min(scale, 128u) : scale) + 126);
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = multiply_pair(pairs[i], factor);
  if constexpr (kLarge) {
    const uint32_t more = scale == 255 ? 0x7fc07fc0u : power_of_two(max(scale, 128u) - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = multiply_pair(pairs[i], more);
  }
}

}  // namespace mixlane::experts_gpu
