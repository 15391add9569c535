// Narrow tiles of packed e2m1 weights and bf16 tokens: the weights are decoded to bf16 in registers, from where a wave's
// products take them.
//
// Which value of k a product's lane holds is free as long as weights and tokens agree. A stage's 128 values are two halves;
// lane l holds 16 (l % 4) to 16 (l % 4) + 15 of each: of a weight row 8 bytes, of a token two packets, which for eight lanes
// lie in different banks. Of eight neighbours it pairs values i and i + 4, which one shift brings to where bf16 has them.
#pragma once

#include "gpu/ptx/mma.cuh"
#include "ops/experts/wgmma/packed_scales.cuh"
#include "ops/experts/wgmma/products.cuh"

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

// The pairs {i, i + 4} of a packet of eight bf16.
__device__ inline void pair_values(const uint4& packet, uint32_t (&pairs)[4]) {
  pairs[0] = __byte_perm(packet.x, packet.z, 0x5410);
  pairs[1] = __byte_perm(packet.x, packet.z, 0x7632);
  pairs[2] = __byte_perm(packet.y, packet.w, 0x5410);
  pairs[3] = __byte_perm(packet.y, packet.w, 0x7632);
}

// A thread's weights of half a stage: per eight of its values two products' operands.
using PackedOperands = uint32_t[kGroupBlocks][2][2][4];

template <bool kLarge>
__device__ void decode_half(const std::byte* rows, const uint32_t (&scales)[kGroupBlocks][2], int half, const Place& place,
                            PackedOperands& operands) {
  // A row has 64 bytes; packet c of row r lies at c ^ r / 2 % 4.
  const uint32_t at = ((static_cast<uint32_t>(half) * 2 + place.pair / 2) ^ place.row / 2) * 16 + place.pair % 2 * 8;
#pragma unroll
  for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const uint2 codes = *reinterpret_cast<const uint2*>(rows + (64 * b + 8 * upper) * 64 + at);
      const uint32_t scale = scales[b][upper] >> (16 * half) & 0xffu;
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        uint32_t pairs[4];
        decode_codes(q ? codes.y : codes.x, pairs);
        scale_pairs<kLarge>(scale, pairs);
#pragma unroll
        for (int i = 0; i < 4; ++i) operands[b][q][i / 2][i % 2 * 2 + upper] = pairs[i];
      }
    }
}

// The products of a stage. Those of few tokens are as many chains of sums as there are products of a half, so that none
// waits for the one before.
template <int kN, bool kLarge, int kChains>
__device__ void multiply_packed_stage(const std::byte* weights, const std::byte* tokens, uint32_t token_bytes,
                                      const uint32_t (&scales)[kGroupBlocks][2], const Place& place,
                                      Accumulators<kN> (&sums)[kChains]) {
#pragma unroll
  for (int half = 0; half < 2; ++half, tokens += token_bytes) {
    PackedOperands operands;
    decode_half<kLarge>(weights, scales, half, place, operands);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (uint32_t q = 0; q < 2; ++q) {
        uint32_t pairs[4];
        pair_values(*reinterpret_cast<const uint4*>(tokens + j * 8 * kRowBytes + ((2 * place.pair + q) ^ place.row) * 16),
                    pairs);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int b = 0; b < kGroupBlocks; ++b)
            ptx::mma_bf16(sums[(2 * q + m) % kChains][b] + 4 * j, operands[b][q][m], pairs[2 * m], pairs[2 * m + 1]);
      }
  }
}

// One tile.
template <Product kProduct, int kN>
__device__ void multiply_packed(Pipeline<Operands::e2m1>& pipe, const Place& place, uint32_t num_steps, const Shared&,
                                Accumulators<kN>& sums) {
  constexpr int kChains = kN <= 16 ? 4 : 1;
  Accumulators<kN> chains[kChains];
#pragma unroll
  for (int c = 0; c < kChains; ++c) clear<kN>(chains[c]);
  const uint32_t row = place.group * 128 + place.warp * 16 + place.row;
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    pipe.wait_full();
    // Byte 0 is the scale of the thread's part of the first half, byte 2 that of the second.
    uint32_t scales[kGroupBlocks][2];
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper)
        scales[b][upper] = reinterpret_cast<const uint32_t*>(pipe.scales())[row + 64 * b + 8 * upper] >> place.pair / 2 * 8;
    const bool large = __any_sync(~0u, ((scales[0][0] | scales[0][1] | scales[1][0] | scales[1][1]) & 0x00800080u) != 0);
    const std::byte* weights = pipe.weights() + row * Step<Operands::e2m1>::kWeightRowBytes;
    const std::byte* tokens = pipe.tokens() + place.row * kRowBytes;
    if (large)
      multiply_packed_stage<kN, true>(weights, tokens, pipe.token_bytes(), scales, place, chains);
    else
      multiply_packed_stage<kN, false>(weights, tokens, pipe.token_bytes(), scales, place, chains);
    __syncwarp();
    release_stage(pipe.empty());
  }
#pragma unroll
  for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      sums[b][i] = chains[0][b][i];
#pragma unroll
      for (int c = 1; c < kChains; ++c) sums[b][i] += chains[c][b][i];
    }
}

}  // namespace mixlane::experts_gpu
