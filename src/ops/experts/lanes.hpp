// Stored weights to f32, sixteen or thirty-two at a time, in registers. For use inside functions marked MIXLANE_CPU_LEVELS.
#pragma once

#include <cstdint>
#include <cstring>

namespace mixlane {

// Sixteen lanes; the compiler splits them where registers are shorter. Passed by reference: by value, their calling
// convention depends on the instruction set.
inline constexpr int64_t kLanes = 16;
using F32x16 [[gnu::vector_size(64)]] = float;
using U32x16 [[gnu::vector_size(64)]] = uint32_t;
using I32x16 [[gnu::vector_size(64)]] = int32_t;
using U16x16 [[gnu::vector_size(32)]] = uint16_t;
using U8x16 [[gnu::vector_size(16)]] = uint8_t;

// A decoder's step: kBytes of weights become kStep values in kStep / 16 vectors.
struct Bf16Decoder {
  static constexpr int64_t kStep = 16, kBytes = 32;
  [[gnu::always_inline]] static inline void load(const uint8_t* from, F32x16* out) {
    U16x16 bits;
    std::memcpy(&bits, from, sizeof(bits));
    out[0] = reinterpret_cast<F32x16>(__builtin_convertvector(bits, U32x16) << 16);
  }
};

struct E4m3Decoder {
  static constexpr int64_t kStep = 16, kBytes = 16;
  [[gnu::always_inline]] static inline void load(const uint8_t* from, F32x16* out) {
    U8x16 bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    // Sign to bit 31, the rest to bits 26..20: value * 2^-120, subnormals included, and the product is exact. Unlike in
    // e4m3_to_f32 a subnormal may cost the CPU a detour, but among normally distributed weights one in 10^4 is.
    const I32x16 shifted = reinterpret_cast<I32x16>(__builtin_convertvector(bytes, U32x16) << 24) >> 4;
    const I32x16 magnitude = shifted & 0x07f00000;
    const F32x16 value = reinterpret_cast<F32x16>(shifted & static_cast<int32_t>(0x87f00000)) * 0x1p120f;
    const U32x16 nan = reinterpret_cast<U32x16>(magnitude == 0x07f00000) & 0x7fc00000u;
    out[0] = reinterpret_cast<F32x16>(reinterpret_cast<U32x16>(value) | nan);
  }
};

// Even values in the first vector, odd ones in the second; without their scale.
struct E2m1Decoder {
  static constexpr int64_t kStep = 32, kBytes = 16;
  [[gnu::always_inline]] static inline void load(const uint8_t* from, F32x16* out) {
    U8x16 bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    const U32x16 bits = __builtin_convertvector(bytes, U32x16);
    decode(bits, out[0]);
    decode(bits >> 4, out[1]);
  }

 private:
  // As e2m1_to_f32: 0.5 is the one subnormal.
  [[gnu::always_inline]] static inline void decode(const U32x16& bits, F32x16& out) {
    const U32x16 magnitude = bits & 7u;
    const U32x16 subnormal = magnitude * 0x3f000000u;
    const U32x16 normal = (magnitude << 22) + (126u << 23);
    out = reinterpret_cast<F32x16>((magnitude < 2u ? subnormal : normal) | (bits & 8u) << 28);
  }
};

}  // namespace mixlane
