// Products of packed e2m1 weights and e4m3 tokens: the weights are decoded to e4m3 in registers, from where wgmma takes its
// left operand. What a group's scale is below its row's largest one in a stage goes into the decoded values (FoldedScales).
// All of it is inlined by force: products that are under way may not cross a call.
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

// `rows`: the stage's codes of this thread's row in the block; `folded`: its scales, those of row + 8 eight further.
__device__ __forceinline__ void decode_block(const std::byte* rows, const FoldedScales* folded, const uint2* table,
                                             const Place& place, FoldedOperands& operands) {
  const uint32_t below[2] = {folded[0].below, folded[8].below};
#pragma unroll
  for (uint32_t k = 0; k < kRowProducts; ++k) {
    // A row has 64 bytes; packet c of row r lies at c ^ r / 2 % 4.
    const std::byte* packet = rows + (k ^ place.row / 2) * 16 + place.pair * 2;
#pragma unroll
    for (uint32_t upper = 0; upper < 2; ++upper) {
      const uint2 entry = table[below[upper] >> (8 * k) & 0xffu];
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half)
        operands[k][half * 2 + upper] =
            decode_four(*reinterpret_cast<const uint16_t*>(packet + upper * 8 * 64 + half * 8), entry);
    }
  }
}

// Starts the products of a block with kPart tokens.
template <int kPart>
__device__ __forceinline__ void multiply_folded(const FoldedOperands& operands, uint64_t tokens, float (&part)[kPart / 2]) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kRowProducts; ++k)
    ptx::Wgmma<kPart>::mma_e4m3(part, operands[k], tokens + k * ptx::kDescriptorStep, k > 0);
  ptx::wgmma_commit();
}

// One tile. The second block's weights are decoded while the first one's products run, where registers hold both; besides,
// the other warpgroup fills the tensor cores. The widest tiles go in two halves of their tokens for the same reason.
template <Product kProduct, int kN>
__device__ __forceinline__ void multiply_packed(Pipeline<Operands::e2m1_e4m3>& pipe, const Place& place, uint32_t num_steps,
                                                const Shared& shared, Accumulators<kN>& sums) {
  constexpr int kPart = kN > 96 ? kN / 2 : kN;
  constexpr bool kHoldsBoth = kN <= 80;
  constexpr uint32_t kBlockBytes = 64 * Step<Operands::e2m1_e4m3>::kWeightRowBytes;
  clear<kN>(sums);
  float part[kPart / 2] = {};
  const uint32_t row = place.group * 128 + place.warp * 16 + place.row;
  const uint2* table = decoding_table<Operands::e2m1_e4m3>(shared);
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
    const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1_e4m3>::kWeightRowBytes;
    const auto* folded = reinterpret_cast<const FoldedScales*>(pipe.scales()) + row;
    const uint64_t tokens = ptx::swizzled_rows(ptx::shared_address(pipe.tokens()));
    FoldedOperands operands[kHoldsBoth ? kGroupBlocks : 1];
    decode_block(codes, folded, table, place, operands[0]);
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      if (!kHoldsBoth && b > 0) decode_block(codes + kBlockBytes, folded + 64, table, place, operands[0]);
#pragma unroll
      for (int first = 0; first < kN; first += kPart) {
        multiply_folded<kPart>(operands[kHoldsBoth ? b : 0], tokens + ptx::descriptor_rows(first), part);
        if (kHoldsBoth && b == 0) decode_block(codes + kBlockBytes, folded + 64, table, place, operands[kHoldsBoth]);
        float2 scales[kPart / 8];
#pragma unroll
        for (int j = 0; j < kPart / 8; ++j)
          scales[j] = *reinterpret_cast<const float2*>(pipe.token_scales() + first + 8 * j + 2 * place.pair);
        const float low = folded[64 * b].scale, high = folded[64 * b + 8].scale;
        ptx::wgmma_wait<0>();
        if (b == kGroupBlocks - 1 && first + kPart == kN) release_stage(pipe.empty());
        promote<kPart>(sums[b] + first / 2, part, scales, low, high);
      }
    }
  }
}

}  // namespace mixlane::experts_gpu
