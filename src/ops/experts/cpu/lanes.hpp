// Stored weights to f32, 64 bytes at a time, in registers. For use inside functions marked MIXLANE_CPU_LEVELS.
//
// The 64 bytes are read as sixteen 32-bit words. A word holds kVectors neighbouring values, the lowest bits first, so that
// shifting all words at once gives vector v = values v, kVectors + v, 2 kVectors + v, ...: nothing is widened or moved
// between lanes. Who multiplies these vectors keeps the other operand in the same order (see lane_position).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/numeric.hpp"

namespace mixlane {

// Sixteen lanes; the compiler splits them where registers are shorter. Passed by reference: by value, their calling
// convention depends on the instruction set.
inline constexpr int64_t kLanes = 16;
using F32x16 [[gnu::vector_size(64)]] = float;
using U32x16 [[gnu::vector_size(64)]] = uint32_t;
using I32x16 [[gnu::vector_size(64)]] = int32_t;

inline constexpr int64_t kStepBytes = 64;
inline constexpr int64_t kMaxStep = 128;  // values

// Reads `bytes` <= 64 bytes; the rest is zero.
[[gnu::always_inline]] inline void load_words(const uint8_t* from, int64_t bytes, U32x16& words) {
  if (bytes == kStepBytes) {
    std::memcpy(&words, from, kStepBytes);
  } else {
    uint8_t tail[kStepBytes] = {};
    std::memcpy(tail, from, static_cast<size_t>(bytes));
    std::memcpy(&words, tail, kStepBytes);
  }
}

// Where value i of a row lies in vectors of the decoder's order.
template <class Decoder>
int64_t lane_position(int64_t i) {
  const int64_t in_step = i % Decoder::kStep;
  return i - in_step + in_step % Decoder::kVectors * kLanes + in_step / Decoder::kVectors;
}

struct Bf16Decoder {
  static constexpr int kVectors = 2;
  static constexpr int64_t kStep = kVectors * kLanes;
  static constexpr float kFactor = 1.0f;  // what remains to be multiplied with

  [[gnu::always_inline]] static inline void decode(const U32x16& words, int v, F32x16& out) {
    out = reinterpret_cast<F32x16>(v == 0 ? words << 16 : words & 0xffff0000u);
  }
};

struct E4m3Decoder {
  static constexpr int kVectors = 4;
  static constexpr int64_t kStep = kVectors * kLanes;
  static constexpr float kFactor = 1.0f;

  [[gnu::always_inline]] static inline void decode(const U32x16& words, int v, F32x16& out) {
    // Sign to bit 31, the rest to bits 26..20: value * 2^-120, subnormals included, and the product is exact. Unlike in
    // e4m3_to_f32 a subnormal may cost the CPU a detour, but among normally distributed weights one in 10^4 is.
    const I32x16 shifted = reinterpret_cast<I32x16>(words << (24 - 8 * v)) >> 4;
    const F32x16 value = reinterpret_cast<F32x16>(shifted & static_cast<int32_t>(0x87f00000)) * 0x1p120f;
    const U32x16 nan = reinterpret_cast<U32x16>((shifted & 0x07f00000) == 0x07f00000) & 0x7fc00000u;
    out = reinterpret_cast<F32x16>(reinterpret_cast<U32x16>(value) | nan);
  }
};

// Without the scales.
struct E2m1Decoder {
  static constexpr int kVectors = 8;
  static constexpr int64_t kStep = kVectors * kLanes;
  static constexpr float kFactor = 0.5f;

  [[gnu::always_inline]] static inline void decode(const U32x16& words, int v, F32x16& out) {
    // Twice the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 are the digits of a word.
    constexpr uint32_t kTwice = 0xc8643210u;
    const U32x16 shift = (v == 0 ? words << 2 : words >> (4 * v - 2)) & 28u;
    const U32x16 digits = ((U32x16{} + kTwice) >> shift) & 15u;
    const F32x16 magnitude = __builtin_convertvector(reinterpret_cast<I32x16>(digits), F32x16);
    const U32x16 sign = (words << (28 - 4 * v)) & 0x80000000u;
    out = reinterpret_cast<F32x16>(reinterpret_cast<U32x16>(magnitude) | sign);
  }

  // The factors of a step's lanes from its e8m0 scales: a scale stands for 32 values, that is four words. `count` <= 4.
  [[gnu::always_inline]] static inline void load_factors(const uint8_t* scales, int64_t count, F32x16& out) {
    float f[4] = {};
    for (int64_t g = 0; g < count; ++g) f[g] = e8m0_to_f32(scales[g]) * kFactor;
    out = F32x16{f[0], f[0], f[0], f[0], f[1], f[1], f[1], f[1], f[2], f[2], f[2], f[2], f[3], f[3], f[3], f[3]};
  }
};

}  // namespace mixlane
