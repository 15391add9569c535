// Packed e2m1 weights as e4m3: their decoding and their products with e4m3 tokens. What a group's scale is below the largest
// one of its row in a stage goes into the decoded values (FoldedScales).
#pragma once

#include "ops/experts/wgmma_decoders.cuh"
#include "ops/experts/wgmma_packed_scales.cuh"
#include "ops/experts/wgmma_products.cuh"

namespace mixlane::experts_gpu {

// Eight e2m1 codes as e4m3: magnitudes by an entry of the table, signs moved from bits 4 i + 3 to bits 8 i + 7.
__device__ __forceinline__ uint2 decode_eight(uint32_t codes, const uint2& entry) {
  const uint32_t magnitudes = codes & 0x77777777u, shifted = codes * 16u;
  const uint32_t low = __byte_perm(entry.x, entry.y, magnitudes), high = __byte_perm(entry.x, entry.y, magnitudes >> 16);
  const uint32_t low_signs = __byte_perm(codes, shifted, 0x1504), high_signs = __byte_perm(codes, shifted, 0x3726);
  return make_uint2(low | (low_signs & 0x80808080u), high | (high_signs & 0x80808080u));
}

__device__ __forceinline__ uint4 decode_sixteen(uint32_t first, uint32_t second, const uint2& entry) {
  const uint2 low = decode_eight(first, entry), high = decode_eight(second, entry);
  return make_uint4(low.x, low.y, high.x, high.y);
}

// Codes and table entries are all asked for before the slot is waited for.
__device__ __forceinline__ void decode_stage(Pipeline<Operands::e2m1_e4m3>& pipe, const Shared& shared) {
  const DecoderPlace place;
  constexpr uint32_t kPackets = kDecoderRows / 8;
  const uint32_t row = place.warp * kDecoderRows + place.row, group = place.octet;
  const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1_e4m3>::kWeightRowBytes + place.packet(group);
  const auto* below = reinterpret_cast<const uint8_t*>(pipe.scales()) + row * sizeof(FoldedScales) + group;
  const uint2* table = decoding_table<Operands::e2m1_e4m3>(shared);
  uint4 packets[kPackets];
  uint2 entries[kPackets];
#pragma unroll
  for (uint32_t i = 0; i < kPackets; ++i) {
    entries[i] = table[below[i * 8 * sizeof(FoldedScales)]];
    packets[i] = *reinterpret_cast<const uint4*>(codes + i * 8 * 64);
  }
  const uint32_t to = offset_of(pipe.decoded()) + row * kRowBytes + ((2 * group) ^ place.row) * 16;
  pipe.wait_used();
#pragma unroll
  for (uint32_t i = 0; i < kPackets; ++i) {
    store_packet(to + i * 8 * kRowBytes, decode_sixteen(packets[i].x, packets[i].y, entries[i]));
    store_packet((to ^ 16) + i * 8 * kRowBytes, decode_sixteen(packets[i].z, packets[i].w, entries[i]));
  }
  pipe.publish_decoded();
  pipe.advance_decoded();
}

// One tile: as a narrow one of e4m3 weights, but with scales of each row.
template <Product kProduct, int kN>
__device__ __forceinline__ void multiply_packed(Pipeline<Operands::e2m1_e4m3>& pipe, const Place& place, uint32_t num_steps,
                                                Accumulators<kN>& sums) {
  clear<kN>(sums);
  // Sums and products of the widest tiles leave no registers for the tokens' scales while the products are made.
  constexpr bool kLate = kN > 80;
  const auto release = [](Pipeline<Operands::e2m1_e4m3>& read) {
    read.release_decoded();
    release_stage(read.empty());
  };
  float part[kN / 2] = {};
  const uint32_t row = place.group * 128 + place.warp * 16 + place.row;
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance(), pipe.advance_decoded()) {
    wait_stage<kProduct != Product::down>(pipe);
    pipe.wait_decoded();
    Descriptors at(pipe, place);
    at.weights = ptx::swizzled_rows(ptx::shared_address(pipe.decoded())) + place.group * ptx::descriptor_rows(128);
    multiply_block<kN>(at, 0, part);
    const auto* folded = reinterpret_cast<const FoldedScales*>(pipe.scales()) + row;
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      if (b > 0) multiply_block<kN>(at, b, part);
      const float low = folded[64 * b].scale, high = folded[64 * b + 8].scale;
      float2 tokens[kN / 8];
      const auto load_tokens = [&] {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j)
          tokens[j] = *reinterpret_cast<const float2*>(pipe.token_scales() + 8 * j + 2 * place.pair);
      };
      if constexpr (!kLate) load_tokens();
      ptx::wgmma_wait<0>();
      if constexpr (kLate) load_tokens();
      if (!kLate && b == kGroupBlocks - 1) release(pipe);
      promote<kN>(sums[b], part, tokens, low, high);
      if (kLate && b == kGroupBlocks - 1) release(pipe);
    }
  }
}

}  // namespace mixlane::experts_gpu
