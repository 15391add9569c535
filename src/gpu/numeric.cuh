// Small floating-point formats on the device: the bits of core/numeric.hpp, through conversion instructions where they
// give the same ones.
#pragma once

#include "gpu/device.hpp"
#include "mixlane/core.hpp"

#if !defined(MIXLANE_HIP)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mixlane::gpu {

__device__ inline float bf16_to_f32(uint32_t bits) { return __uint_as_float(bits << 16); }

#if defined(MIXLANE_HIP)
__device__ inline float f16_to_f32(uint32_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<uint16_t>(bits)));
}
// Two numbers in a word, the first in its lower half: to nearest even, NaN stays some NaN.
__device__ inline uint32_t f32x2_to_f16x2(float low, float high) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(low)) |
         static_cast<uint32_t>(__builtin_bit_cast(uint16_t, static_cast<_Float16>(high))) << 16;
}
__device__ inline uint32_t f32x2_to_bf16x2(float low, float high) {
  const auto half = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    const uint32_t number = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : number;
  };
  return half(low) | half(high) << 16;
}
#else
__device__ inline float f16_to_f32(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }
__device__ inline uint32_t f32x2_to_f16x2(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
__device__ inline uint32_t f32x2_to_bf16x2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
#endif

// The smaller and the larger of two numbers; a NaN if x is one. `bound` is none.
// 2^x and 1 / x as the hardware approximates them, to about 2 ulp; subnormals may count as zeros.
#if defined(MIXLANE_HIP)
__device__ inline float at_most(float x, float bound) { return bound < x ? bound : x; }
__device__ inline float at_least(float x, float bound) { return x < bound ? bound : x; }
__device__ inline float approximate_exp2(float x) { return __builtin_amdgcn_exp2f(x); }
__device__ inline float approximate_reciprocal(float x) { return __builtin_amdgcn_rcpf(x); }
#else
__device__ inline float at_most(float x, float bound) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(bound));
  return result;
}
__device__ inline float at_least(float x, float bound) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(bound));
  return result;
}
__device__ inline float approximate_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ inline float approximate_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#endif

// Four codes in a word, the first in its lowest byte: to nearest even, saturated to +-448. NaN gives 0x7f; the sign of
// zeros and NaNs is not to be relied on.
__device__ inline uint32_t f32x4_to_e4m3x4(float x0, float x1, float x2, float x3) {
#if !defined(MIXLANE_HIP) && __CUDA_ARCH__ >= 890
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x1), "f"(x0));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x3), "f"(x2));
  return low | static_cast<uint32_t>(high) << 16;
#else
  const auto code = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t bounded = min(magnitude, __float_as_uint(448.0f));
    // Below 2^-6 multiples of 2^-9: adding 2^14, whose ulp that is, rounds to them.
    const uint32_t subnormal = __float_as_uint(__uint_as_float(bounded) + 0x1p14f) - __float_as_uint(0x1p14f);
    const uint32_t normal = ((bounded + 0x7ffffu + ((bounded >> 20) & 1u)) >> 20) - (120u << 3);
    const uint32_t number = bounded < __float_as_uint(0x1p-6f) ? subnormal : normal;
    return ((bits >> 24) & 0x80u) | (magnitude > 0x7f800000u ? 0x7fu : number);
  };
  return code(x0) | code(x1) << 8 | code(x2) << 16 | code(x3) << 24;
#endif
}

// Exact; NaN stays NaN.
__device__ inline float e4m3_to_f32(uint32_t bits) {
  const uint32_t sign = (bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
  // As the subnormal or normal f32 that has these bits in front, times 2^120: exact.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 20) * 0x1p120f));
}

// Of a number, not NaN: to nearest even, saturated to +-6.
__device__ inline uint32_t f32_to_e2m1(float value) {
  const float magnitude = fminf(fabsf(value), 6.0f);
  // 2^(22 + e), e = 0, 1, 2 for magnitudes in [0, 2), [2, 4), [4, 6]: its ulp is the distance between codes there.
  const float unit = __uint_as_float((__float_as_uint(fmaxf(magnitude, 1.0f)) & 0x7f800000u) + (22u << 23));
  const uint32_t rounded = __float_as_uint(magnitude + unit);  // low bits: multiple of the distance, m
  // The code is m + 2e, and rounded >> 22 is 298 + 2e; 298 = 2 modulo 8.
  const uint32_t code = (rounded + (rounded >> 22) - 2u) & 7u;
  return code | ((__float_as_uint(value) >> 28) & 8u);
}

__device__ inline float e2m1_to_f32(uint32_t nibble) {
  const uint32_t magnitude = nibble & 7u;
  const uint32_t subnormal = magnitude * 0x3f000000u;
  const uint32_t normal = (magnitude << 22) + (126u << 23);
  return __uint_as_float((nibble & 8u) << 28 | (magnitude < 2u ? subnormal : normal));
}

__device__ inline float e8m0_to_f32(uint32_t bits) {
  const uint32_t special = bits == 0 ? 0x00400000u : 0x7fc00000u;
  return __uint_as_float(bits == 0 || bits == 0xffu ? special : bits << 23);
}

// ---------------------------------------------------------------------------------------------------------------------
// Two short values of a word at once

#if defined(MIXLANE_HIP)
inline constexpr bool kHasShortPairs = false;
#else
inline constexpr bool kHasShortPairs = true;

template <class Pair>
__device__ uint32_t bits_of(const Pair& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class Pair>
__device__ Pair pair_of(uint32_t bits) {
  return *reinterpret_cast<const Pair*>(&bits);
}

// Of four words: the largest magnitudes in the lower and in the upper halves. NaNs are left out, or beat everything with
// kNanFirst.
template <DType kType, bool kNanFirst>
__device__ uint32_t largest_halves(const uint32_t* words) {
  using Pair = std::conditional_t<kType == DType::bf16, __nv_bfloat162, __half2>;
  Pair largest = kNanFirst ? __habs2(pair_of<Pair>(words[0])) : __hmax2(__habs2(pair_of<Pair>(words[0])), pair_of<Pair>(0));
#pragma unroll
  for (int w = 1; w < 4; ++w) {
    const Pair other = __habs2(pair_of<Pair>(words[w]));
    largest = kNanFirst ? __hmax2_nan(largest, other) : __hmax2(largest, other);
  }
  return bits_of(largest);
}

// f32_to_e2m1 of two numbers' magnitudes, in the lowest three bits of each half. Of `magnitude` times `unit`, a power
// of two that leaves it below 8. kBits: of the mantissa; kOne: the bits of 1.
//
// A code is min(2v, v + 2, v/2 + 4) and at most 7, rounded to the nearest even integer. Rounding does not change which of
// the three is the least, so that each is rounded as it is added to 2^(kBits - 1), whose ulp is half a code's.
template <int kBits, uint32_t kOne, class Pair>
__device__ uint32_t pair_to_e2m1(Pair magnitude, Pair unit) {
  constexpr uint32_t kBoth = 0x10001u;
  constexpr uint32_t kSum = kOne + (static_cast<uint32_t>(kBits - 1) << kBits);
  const auto both = [](uint32_t bits) { return pair_of<Pair>(bits * kBoth); };
  const Pair half = both(kOne - (1u << kBits));
  const Pair half_unit = __hmul2(unit, half);
  const Pair below_2 = __hfma2(magnitude, unit, both(kSum));
  const Pair below_4 = __hfma2(magnitude, half_unit, both(kSum + 2));
  const Pair above_4 = __hfma2(magnitude, __hmul2(half_unit, half), both(kSum + 4));
  return bits_of(__hmin2(__hmin2(__hmin2(below_2, below_4), above_4), both(kSum + 7)));
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Runs of eight values of a row, the unit in which kernels load, convert and store

inline constexpr int kOctet = 8;

template <DType kType>
struct Octet {
  static constexpr int kWords = kType == DType::f32 ? 8 : 4;
  uint32_t words[kWords];

  __device__ float value(int i) const {
    if constexpr (kType == DType::f32) return __uint_as_float(words[i]);
    if constexpr (kType == DType::bf16) return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    if constexpr (kType == DType::f16) return f16_to_f32(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu);
    return 0.0f;
  }
  // Values i and i + 1; i is even.
  __device__ void set_pair(int i, float low, float high) {
    if constexpr (kType == DType::f32) {
      words[i] = __float_as_uint(low);
      words[i + 1] = __float_as_uint(high);
    } else {
      words[i / 2] = kType == DType::bf16 ? f32x2_to_bf16x2(low, high) : f32x2_to_f16x2(low, high);
    }
  }
  // The bits of the largest magnitude as f32, infinity included: ordered like unsigned numbers. NaNs are left out, or
  // beat everything with kNanFirst.
  template <bool kNanFirst>
  __device__ uint32_t magnitude() const {
    if constexpr (kHasShortPairs && kType != DType::f32) {
      const uint32_t both = largest_halves<kType, kNanFirst>(words);
      const Octet halves{{both}};
      return max(__float_as_uint(halves.value(0)), __float_as_uint(halves.value(1)));
    } else {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < kOctet; ++i) {
        if constexpr (kNanFirst) {
          largest = max(largest, __float_as_uint(value(i)) & 0x7fffffffu);
        } else {
          largest = __float_as_uint(fmaxf(__uint_as_float(largest), fabsf(value(i))));
        }
      }
      return largest;
    }
  }
  // The signs of values i..i + 3 in the top bits of a word's bytes; i is 0 or 4.
  __device__ uint32_t signs(int i) const {
    if constexpr (kType == DType::f32) {
      const uint32_t low = __byte_perm(words[i], words[i + 1], 0x0073);
      const uint32_t high = __byte_perm(words[i + 2], words[i + 3], 0x0073);
      return __byte_perm(low, high, 0x5410) & 0x80808080u;
    } else {
      return __byte_perm(words[i / 2], words[i / 2 + 1], 0x7531) & 0x80808080u;
    }
  }
};

// The e2m1 codes of the octet's numbers times `factor`, a power of two that leaves magnitudes below 8. No NaNs.
#if !defined(MIXLANE_HIP)
__device__ inline uint32_t pair_to_e2m1(const Octet<DType::bf16>& octet, int w, float factor) {
  return pair_to_e2m1<7, 0x3f80u>(__habs2(pair_of<__nv_bfloat162>(octet.words[w])), __float2bfloat162_rn(factor));
}
// By way of f32, in case the factor is beyond f16's range: what f16 then rounds off is far below any code.
__device__ inline uint32_t pair_to_e2m1(const Octet<DType::f16>& octet, int w, float factor) {
  const uint32_t scaled = f32x2_to_f16x2(octet.value(2 * w) * factor, octet.value(2 * w + 1) * factor);
  return pair_to_e2m1<10, 0x3c00u>(__habs2(pair_of<__half2>(scaled)), pair_of<__half2>(0x3c003c00u));
}
#endif

template <DType kType>
__device__ uint32_t octet_to_e2m1(const Octet<kType>& octet, float factor) {
  if constexpr (kHasShortPairs && kType != DType::f32) {
    // The second operand where the mask is 0.
    const auto merge = [](uint32_t ones, uint32_t zeros, uint32_t mask) { return (ones & mask) | (zeros & ~mask); };
    uint32_t fours[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t magnitudes =
          __byte_perm(pair_to_e2m1(octet, 2 * i, factor), pair_to_e2m1(octet, 2 * i + 1, factor), 0x6420);
      // Codes in the lower halves of bytes, then two in bytes 0 and 2; what else is there is of no meaning.
      const uint32_t codes = merge(magnitudes, octet.signs(4 * i) >> 4, 0x07070707u);
      fours[i] = merge(codes, codes >> 4, 0x0f0f0f0fu);
    }
    return __byte_perm(fours[0], fours[1], 0x6420);
  } else {
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < kOctet; ++i) codes |= f32_to_e2m1(octet.value(i) * factor) << (4 * i);
    return codes;
  }
}

// The first `count` values at `from`, zeros behind them. `packets`: whole octets are aligned to 16 bytes.
template <DType kType>
__device__ Octet<kType> load_octet(const void* from, int64_t count, bool packets) {
  Octet<kType> octet{};
  if (count >= kOctet && packets) {
#pragma unroll
    for (int i = 0; i < Octet<kType>::kWords / 4; ++i) {
      const uint4 packet = static_cast<const uint4*>(from)[i];
      octet.words[4 * i] = packet.x;
      octet.words[4 * i + 1] = packet.y;
      octet.words[4 * i + 2] = packet.z;
      octet.words[4 * i + 3] = packet.w;
    }
    return octet;
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    if (i >= count) break;
    if constexpr (kType == DType::f32) {
      octet.words[i] = static_cast<const uint32_t*>(from)[i];
    } else {
      octet.words[i / 2] |= static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << (i % 2 * 16);
    }
  }
  return octet;
}

template <DType kType>
__device__ void store_octet(void* to, const Octet<kType>& octet, int64_t count, bool packets) {
  if (count >= kOctet && packets) {
#pragma unroll
    for (int i = 0; i < Octet<kType>::kWords / 4; ++i) {
      const uint32_t* words = octet.words + 4 * i;
      static_cast<uint4*>(to)[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    if (i >= count) break;
    if constexpr (kType == DType::f32) {
      static_cast<uint32_t*>(to)[i] = octet.words[i];
    } else {
      static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(octet.words[i / 2] >> (i % 2 * 16));
    }
  }
}

}  // namespace mixlane::gpu
