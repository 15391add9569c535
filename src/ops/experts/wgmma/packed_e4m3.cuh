// Narrow tiles of packed e2m1 weights and e4m3 tokens: the weights are decoded to e4m3 in registers, from where wgmma takes
// its left operand. What a group's scale is below its row's largest one in a stage goes into the decoded values
// (FoldedScales). All of it is inlined by force: products that are under way may not cross a call.
#pragma once

#include "ops/experts/wgmma/packed_scales.cuh"
#include "ops/experts/wgmma/products.cuh"

namespace mixlane::experts_gpu {

// Four e2m1 codes as e4m3: magnitudes by an entry of the table, signs moved from bits 4 i + 3 to bits 8 i + 7.
__device__ __forceinline__ uint32_t decode_four(uint32_t codes, const uint2& entry) {
  const uint32_t magnitudes = __byte_perm(entry.x, entry.y, codes & 0x7777u);
  const uint32_t signs = __byte_perm(codes, codes * 16u, 0x1504);
  return magnitudes | (signs & 0x80808080u);
}

// A thread's weights of a stage and block of 64 rows: those of four products.
using FoldedOperands = uint32_t[kRowProducts][4];

// `rows`: the stage's codes of this thread's row in the block; `folded`: its scales and those of row + 8.
__device__ __forceinline__ void decode_block(const std::byte* rows, const FoldedScales (&folded)[2], const uint2* table,
                                             const Place& place, FoldedOperands& operands) {
#pragma unroll
  for (uint32_t k = 0; k < kRowProducts; ++k) {
    // A row has 64 bytes; packet c of row r lies at c ^ r / 2 % 4.
    const std::byte* packet = rows + (k ^ place.row / 2) * 16 + place.pair * 2;
#pragma unroll
    for (uint32_t upper = 0; upper < 2; ++upper) {
      const uint2 entry = table[folded[upper].below >> (8 * k) & 0xffu];
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half)
        operands[k][half * 2 + upper] =
            decode_four(*reinterpret_cast<const uint16_t*>(packet + upper * 8 * 64 + half * 8), entry);
    }
  }
}

// Starts the products of a block with kN tokens.
template <int kN>
__device__ __forceinline__ void multiply_folded(const FoldedOperands& operands, uint64_t tokens, float (&part)[kN / 2]) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kRowProducts; ++k)
    ptx::Wgmma<kN>::mma_e4m3(part, operands[k], tokens + k * ptx::kDescriptorStep, k > 0);
  ptx::wgmma_commit();
}

// One tile. The second block's weights are decoded while the first one's products run; besides, the other warpgroup fills
// the tensor cores.
template <Product kProduct, int kN>
__device__ __forceinline__ void multiply_packed(Pipeline<Operands::e2m1_e4m3>& pipe, const Place& place, uint32_t num_steps,
                                                const Shared& shared, Accumulators<kN>& sums) {
  constexpr uint32_t kBlockBytes = 64 * Step<Operands::e2m1_e4m3>::kWeightRowBytes;
  clear<kN>(sums);
  float part[kN / 2] = {};
  const uint32_t row = place.group * 128 + place.warp * 16 + place.row;
  const uint2* table = decoding_table<Operands::e2m1_e4m3>(shared);
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
    const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1_e4m3>::kWeightRowBytes;
    const auto* words = reinterpret_cast<const uint32_t*>(pipe.scales()) + row;
    FoldedScales folded[kGroupBlocks][2];
#pragma unroll
    for (int i = 0; i < 2 * kGroupBlocks; ++i) folded[i / 2][i % 2] = fold_scales(words[64 * (i / 2) + 8 * (i % 2)]);
    const uint64_t tokens = ptx::swizzled_rows(ptx::shared_address(pipe.tokens()));
    FoldedOperands operands[kGroupBlocks];
    decode_block(codes, folded[0], table, place, operands[0]);
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      multiply_folded<kN>(operands[b], tokens, part);
      if (b == 0) decode_block(codes + kBlockBytes, folded[1], table, place, operands[1]);
      float2 scales[kN / 8];
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
        scales[j] = *reinterpret_cast<const float2*>(pipe.token_scales() + 8 * j + 2 * place.pair);
      ptx::wgmma_wait<0>();
      if (b == kGroupBlocks - 1) release_stage(pipe.empty());
      promote<kN>(sums[b], part, scales, folded[b][0].scale, folded[b][1].scale);
    }
  }
}

}  // namespace mixlane::experts_gpu
