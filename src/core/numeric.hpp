// Small floating-point formats, exact and portable: the definition that every backend is tested against.
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
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
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

inline float f16_to_f32(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline uint16_t f32_to_f16(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }

// --- fp8 e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN ----------------

inline constexpr float kE4m3Max = 448.0f;

inline float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // Exponent and mantissa moved to f32's places make value * 2^-120, subnormals included; the product is exact.
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

// To nearest even, saturated to +-448 (infinities too); NaN gives NaN.
inline uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7fu;
  const float absolute = std::bit_cast<float>(magnitude);
  if (absolute >= kE4m3Max) return sign | 0x7eu;
  if (absolute < 0x1p-6f) {
    // Subnormal: multiples of 2^-9; adding 2^14 (ulp 2^-9) rounds to them, to nearest even.
    const float shifted = absolute + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0x1p14f));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return sign | static_cast<uint8_t>((rounded >> 20) - (120u << 3));
}

// --- fp4 e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives ----------------------------------------------------------

inline constexpr float kE2m1Max = 6.0f;
inline constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

inline float e2m1_to_f32(uint8_t nibble) { return kE2m1Values[nibble & 15u]; }

// To nearest even, saturated to +-6; there is no NaN: it gives +-6 by its sign.
inline uint8_t f32_to_e2m1(float value) {
  const auto sign = static_cast<uint8_t>((std::bit_cast<uint32_t>(value) >> 28) & 8u);
  const float a = std::fabs(value);
  // Halfway points go to the neighbour with an even code; a NaN fails every comparison and saturates.
  uint8_t code = 7;
  if (a <= 0.25f)
    code = 0;
  else if (a < 0.75f)
    code = 1;
  else if (a <= 1.25f)
    code = 2;
  else if (a < 1.75f)
    code = 3;
  else if (a <= 2.5f)
    code = 4;
  else if (a < 3.5f)
    code = 5;
  else if (a <= 5.0f)
    code = 6;
  return sign | code;
}

// --- e8m0: 2^(byte - 127), 0xff = NaN ------------------------------------------------------------------------------------

inline float e8m0_to_f32(uint8_t bits) {
  if (bits == 0xffu) return std::bit_cast<float>(0x7fc00000u);
  if (bits == 0) return 0x1p-127f;
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 23);
}

}  // namespace mixlane
