// Packed e2m1 weights as bf16: their decoding, exact, and their products.
#pragma once

#include "ops/experts/wgmma_decoders.cuh"
#include "ops/experts/wgmma_packed_scales.cuh"
#include "ops/experts/wgmma_products.cuh"

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

// Eight codes: 16 bytes.
template <bool kLarge>
__device__ uint4 decode_eight(uint32_t codes, uint32_t scale) {
  uint32_t pairs[4];
  decode_codes(codes, pairs);
  scale_pairs<kLarge>(scale, pairs);
  return make_uint4(__byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[2], pairs[3], 0x5410),
                    __byte_perm(pairs[0], pairs[1], 0x7632), __byte_perm(pairs[2], pairs[3], 0x7632));
}

// A thread's packets of half a stage, 64 of k: of rows 16 apart.
inline constexpr int kHalfPackets = kDecoderRows / 16;

template <bool kLarge>
__device__ __forceinline__ void decode_half(const uint4 (&packets)[kHalfPackets], const uint32_t (&scales)[kHalfPackets],
                                            uint32_t to) {
#pragma unroll
  for (int i = 0; i < kHalfPackets; ++i) {
    const uint32_t row = to + static_cast<uint32_t>(i) * 16 * kRowBytes;
    store_packet(row, decode_eight<kLarge>(packets[i].x, scales[i]));
    store_packet(row ^ 16, decode_eight<kLarge>(packets[i].y, scales[i]));
    store_packet(row ^ 32, decode_eight<kLarge>(packets[i].z, scales[i]));
    store_packet(row ^ 48, decode_eight<kLarge>(packets[i].w, scales[i]));
  }
}

// The first 64 of k into one slot, the others into the next one. Codes and scales are all asked for before a slot is waited
// for.
__device__ __forceinline__ void decode_stage(Pipeline<Operands::e2m1>& pipe, const Shared&) {
  const DecoderPlace place;
  const uint32_t row = place.warp * kDecoderRows + place.octet / 2 * 8 + place.row, group = place.octet % 2;
  const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1>::kWeightRowBytes;
  const auto* bytes = reinterpret_cast<const uint8_t*>(pipe.scales()) + row * 4 + group;
  uint4 packets[2][kHalfPackets];
  uint32_t scales[2][kHalfPackets], all = 0;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kHalfPackets; ++i) {
      packets[half][i] = *reinterpret_cast<const uint4*>(codes + place.packet(2 * half + group) + i * 16 * 64);
      scales[half][i] = bytes[2 * half + static_cast<uint32_t>(i) * 16 * 4];
      all |= scales[half][i];
    }
  const bool large = __any_sync(~0u, all >= 128);
#pragma unroll
  for (int half = 0; half < 2; ++half, pipe.advance_decoded()) {
    const uint32_t to = offset_of(pipe.decoded()) + row * kRowBytes + ((4 * group) ^ place.row) * 16;
    pipe.wait_used();
    if (large)
      decode_half<true>(packets[half], scales[half], to);
    else
      decode_half<false>(packets[half], scales[half], to);
    pipe.publish_decoded();
  }
}

// Calls body(tokens, weights), which starts products, for each half of each stage.
template <Product kProduct, class Body>
__device__ __forceinline__ void for_each_half(Pipeline<Operands::e2m1>& pipe, uint32_t num_steps, Body&& body) {
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half, pipe.advance_decoded()) {
      pipe.wait_decoded();
      ptx::wgmma_fence();
      body(ptx::swizzled_rows(ptx::shared_address(pipe.tokens()) + half * pipe.token_bytes()),
           ptx::swizzled_rows(ptx::shared_address(pipe.decoded())));
      ptx::wgmma_commit();
      // Who decodes waits for the slot; the other warpgroup's products fill the tensor cores.
      ptx::wgmma_wait<0>();
      pipe.release_decoded();
    }
    release_stage(pipe.empty());
  }
}

// One tile.
template <Product kProduct, int kN>
__device__ __forceinline__ void multiply_packed(Pipeline<Operands::e2m1>& pipe, const Place& place, uint32_t num_steps,
                                                Accumulators<kN>& sums) {
  clear<kN>(sums);
  for_each_half<kProduct>(pipe, num_steps, [&](uint64_t tokens, uint64_t weights) {
    weights += place.group * ptx::descriptor_rows(128);
#pragma unroll
    for (int k = 0; k < kRowProducts; ++k)
#pragma unroll
      for (int b = 0; b < kGroupBlocks; ++b)
        ptx::Wgmma<kN>::template mma<ptx::MatrixType::bf16>(
            sums[b], weights + ptx::descriptor_rows(64 * b) + k * ptx::kDescriptorStep, tokens + k * ptx::kDescriptorStep,
            true);
  });
}

}  // namespace mixlane::experts_gpu
