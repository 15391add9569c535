// Small floating-point formats, exact and portable: the definition that every backend is tested against. Free of
// branches and of tables, so that loops over them become vector code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mixlane {

// --- bf16: the upper half of an f32 --------------------------------------------------------------------------------

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// To nearest even; NaN stays NaN (quiet, sign kept).
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t number = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : number);
}

// To nearest even in one step: rounding through f32 would round twice.
inline uint16_t f64_to_bf16(double value) {
  float nearest = static_cast<float>(value);
  // Round to odd: keep the inexactness in the last bit, where the second rounding can see it.
  if (static_cast<double>(nearest) != value && std::isfinite(nearest)) {
    uint32_t bits = std::bit_cast<uint32_t>(nearest);
    if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
    nearest = std::bit_cast<float>(bits | 1u);
  }
  return f32_to_bf16(nearest);
}

// --- f16: IEEE binary16 ----------------------------------------------------------------------------------------------

inline float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  // Subnormals are multiples of 2^-24, the ulp of 0.5.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(std::bit_cast<uint32_t>(0.5f) + magnitude) - 0.5f);
  const uint32_t special = (0x7bffu - magnitude) >> 31, nan = (0x7c00u - magnitude) >> 31;  // 1 if so
  const uint32_t normal = ((magnitude << 13) + ((112u + 112u * special) << 23)) | nan << 22;
  return std::bit_cast<float>(sign | (magnitude < 0x400u ? subnormal : normal));
}

// To nearest even, overflow to infinity; NaN stays NaN (quiet, sign kept).
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t bounded = magnitude < 0x47800000u ? magnitude : 0x47800000u;  // 2^16, the place of infinity
  const uint32_t normal = ((bounded + 0xfffu + ((bounded >> 13) & 1u)) >> 13) - (112u << 10);
  const uint32_t number = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (magnitude > 0x7f800000u ? nan : number));
}

// --- fp8 e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN ----------------

inline constexpr float kE4m3Max = 448.0f;

inline float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  // Subnormals are multiples of 2^-9, the ulp of 2^14.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(std::bit_cast<uint32_t>(0x1p14f) + magnitude) - 0x1p14f);
  const uint32_t normal = (magnitude << 20) + (120u << 23);
  const uint32_t number = magnitude < 8u ? subnormal : normal;
  return std::bit_cast<float>(sign | (magnitude == 0x7fu ? 0x7fc00000u : number));
}

// To nearest even, saturated to +-448 (infinities too); NaN gives NaN.
inline uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t max = std::bit_cast<uint32_t>(kE4m3Max);
  const uint32_t bounded = magnitude < max ? magnitude : max;
  // Below 2^-6 multiples of 2^-9: adding 2^14, whose ulp that is, rounds to them.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(bounded) + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t normal = ((bounded + 0x7ffffu + ((bounded >> 20) & 1u)) >> 20) - (120u << 3);
  const uint32_t number = bounded < std::bit_cast<uint32_t>(0x1p-6f) ? subnormal : normal;
  return static_cast<uint8_t>(((bits >> 24) & 0x80u) | (magnitude > 0x7f800000u ? 0x7fu : number));
}

// --- fp4 e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives ----------------------------------------------------------

inline constexpr float kE2m1Max = 6.0f;

inline float e2m1_to_f32(uint8_t nibble) {
  const uint32_t sign = static_cast<uint32_t>(nibble & 8u) << 28;
  const uint32_t magnitude = nibble & 7u;
  const uint32_t subnormal = magnitude * std::bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude << 22) + (126u << 23);
  return std::bit_cast<float>(sign | (magnitude < 2u ? subnormal : normal));
}

// To nearest even, saturated to +-6; there is no NaN: it gives +-6 by its sign.
inline uint8_t f32_to_e2m1(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // The code counts the halfway points passed; each belongs to its neighbour with the even code. The subtraction goes
  // below 0 where the magnitude is above: compilers make a chain of branches of comparisons.
  const auto above = [magnitude](float limit) { return (std::bit_cast<uint32_t>(limit) - magnitude) >> 31; };
  const auto from = [magnitude](float limit) { return (std::bit_cast<uint32_t>(limit) - 1u - magnitude) >> 31; };
  const uint32_t code = above(0.25f) + from(0.75f) + above(1.25f) + from(1.75f) + above(2.5f) + from(3.5f) + above(5.0f);
  return static_cast<uint8_t>(((bits >> 28) & 8u) | code);
}

// --- e8m0: 2^(byte - 127), 0xff = NaN ------------------------------------------------------------------------------------

inline float e8m0_to_f32(uint8_t bits) {
  if (bits == 0xffu) return std::bit_cast<float>(0x7fc00000u);
  if (bits == 0) return 0x1p-127f;
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 23);
}

}  // namespace mixlane
