// Quantising values that are in registers: for the kernels of this folder and for others that fuse it. A tile is held by a
// group of lanes or a block, eight neighbouring values (an octet) at a time:
//
//   const E4m3Scale scale(wave_max<16>(E4m3Scale::magnitude(octet)));    // 16 lanes hold a 1x128 group
//   codes = scale.encode(octet);
#pragma once

#include "gpu/numeric.cuh"
#include "gpu/reduce.cuh"

namespace mixlane::quant_gpu {

// fp8: one f32 scale, eight codes in two words.
class E4m3Scale {
 public:
  using Codes = uint2;
  static constexpr int kBitsPerCode = 8;

  // The bits of the largest magnitude of the octet, infinity included, NaN not: ordered like unsigned numbers.
  template <DType kType>
  __device__ static uint32_t magnitude(const gpu::Octet<kType>& octet) {
    return octet.template magnitude<false>();
  }

  // From the largest magnitude of the whole tile.
  __device__ explicit E4m3Scale(uint32_t magnitude) {
    infinite_ = magnitude == kInfinity;
    // Divided by 448: the product with its reciprocal is within an ulp, so that one correction rounds correctly (Markstein).
    constexpr float kReciprocal = 1.0f / 448.0f;
    const float largest = fmaxf(__uint_as_float(min(magnitude, kInfinity - 1)), 1e-10f);
    const float product = largest * kReciprocal;
    scale_ = __fmaf_rn(__fmaf_rn(-product, 448.0f, largest), kReciprocal, product);
    reciprocal_ = 1.0f / scale_;
  }

  template <DType kType>
  __device__ Codes encode(const gpu::Octet<kType>& octet) const {
    return infinite_ ? encode_values<true>(octet) : encode_values<false>(octet);
  }

  __device__ void store(void* scales, int64_t at) const { static_cast<float*>(scales)[at] = scale_; }
  __device__ float value() const { return scale_; }

 private:
  static constexpr uint32_t kInfinity = 0x7f800000u;

  template <bool kInfinite, DType kType>
  __device__ Codes encode_values(const gpu::Octet<kType>& octet) const {
    constexpr bool kShort = kType != DType::f32;
    uint32_t codes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = quotient<kShort>(octet.value(4 * half + i));
      if constexpr (kInfinite) {
        // The corrections of quotient() turn infinities into NaNs; the largest numbers have the same code.
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (isinf(octet.value(4 * half + i))) q[i] = 448.0f;
      }
      // Zeros and NaNs may have lost their signs, infinities do here.
      codes[half] = gpu::f32x4_to_e4m3x4(q[0], q[1], q[2], q[3]) | octet.signs(4 * half);
    }
    return make_uint2(codes[0], codes[1]);
  }

  // value / scale, correctly rounded wherever the code is not zero, by correcting the product with the reciprocal. The
  // first correction leaves an error of 2^-45, so the second one's remainder is exact and its result correctly rounded
  // (Markstein). Values of 11 bits and fewer don't need it: for the rounded quotient to move across a boundary of e4m3,
  // the lower 20 bits of the scale would have to be zeros or ones but for the last 5, and no amax / 448 looks like that.
  // Nothing in between leaves the normal range: the scale is 2e-13 to 8e35, and codes start at 2^-10 of it.
  template <bool kShort>
  __device__ float quotient(float value) const {
    float q = value * reciprocal_;
    q = __fmaf_rn(__fmaf_rn(-q, scale_, value), reciprocal_, q);
    return kShort ? q : __fmaf_rn(__fmaf_rn(-q, scale_, value), reciprocal_, q);
  }

  bool infinite_;
  float scale_;
  float reciprocal_;
};

// mxfp4: one e8m0 scale, eight codes in a word.
class E2m1Scale {
 public:
  using Codes = uint32_t;
  static constexpr int kBitsPerCode = 4;

  // As above, but NaNs come first.
  template <DType kType>
  __device__ static uint32_t magnitude(const gpu::Octet<kType>& octet) {
    return octet.template magnitude<true>();
  }

  // floor(log2(magnitude)) - 2 as a byte; infinity counts as the largest finite number.
  __device__ explicit E2m1Scale(uint32_t magnitude) {
    byte_ = magnitude > kInfinity ? 0xffu : max(min(magnitude, kInfinity - 1) >> 23, 2u) - 2u;
    reciprocal_ = __uint_as_float((254u - byte_) << 23);
  }

  template <DType kType>
  __device__ Codes encode(const gpu::Octet<kType>& octet) const {
    const Codes codes = gpu::octet_to_e2m1(octet, reciprocal_);
    return byte_ == 0xffu ? 0 : codes;
  }

  __device__ void store(void* scales, int64_t at) const { static_cast<uint8_t*>(scales)[at] = static_cast<uint8_t>(byte_); }

 private:
  static constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t byte_;
  float reciprocal_;  // a power of two: multiplying by it rounds exactly like dividing; of no meaning with NaNs
};

// Writes the codes of the first `count` values; `aligned`: whole octets may be stored in one piece.
template <class Codes>
__device__ void store_codes(std::byte* to, Codes codes, int64_t count, bool aligned, int bits_per_code) {
  if (count >= gpu::kOctet && aligned) {
    *reinterpret_cast<Codes*>(to) = codes;
    return;
  }
  uint64_t rest;
  if constexpr (sizeof(Codes) == 8) {
    rest = codes.x | static_cast<uint64_t>(codes.y) << 32;
  } else {
    rest = codes;
  }
  const int64_t num_bytes = min(count, static_cast<int64_t>(gpu::kOctet)) * bits_per_code / 8;
  for (int64_t i = 0; i < num_bytes; ++i, rest >>= 8) to[i] = static_cast<std::byte>(rest & 0xffu);
}

}  // namespace mixlane::quant_gpu
