// Products of few tokens with packed e2m1 weights: decoded to bf16 in registers, from where a warp's products (mma.sync)
// take them. So all eight multiplying warps decode, and nothing is written to shared memory and read again.
//
// Which value of k a product's lane holds is free as long as weights and tokens agree. A stage's 128 values are two halves;
// lane l holds 16 (l % 4) to 16 (l % 4) + 15 of each: of a weight row 8 bytes, of a token two packets, which for eight lanes
// lie in different banks. Of eight neighbours it pairs values i and i + 4, which one shift brings to where bf16 has them.
#pragma once

#include "gpu/ptx/mma.cuh"
#include "ops/experts/wgmma_e2m1.cuh"
#include "ops/experts/wgmma_products.cuh"

namespace mixlane::experts_gpu {

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
__device__ void decode_operands(const std::byte* rows, const uint32_t (&scales)[kGroupBlocks][2], int half,
                                const Place& place, PackedOperands& operands) {
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
__device__ void multiply_few_stage(const std::byte* weights, const std::byte* tokens, uint32_t token_bytes,
                                   const uint32_t (&scales)[kGroupBlocks][2], const Place& place,
                                   Accumulators<kN> (&sums)[kChains]) {
#pragma unroll
  for (int half = 0; half < 2; ++half, tokens += token_bytes) {
    PackedOperands operands;
    decode_operands<kLarge>(weights, scales, half, place, operands);
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
__device__ void multiply_few(Pipeline<Operands::e2m1>& pipe, const Place& place, uint32_t num_steps,
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
      multiply_few_stage<kN, true>(weights, tokens, pipe.token_bytes(), scales, place, chains);
    else
      multiply_few_stage<kN, false>(weights, tokens, pipe.token_bytes(), scales, place, chains);
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
