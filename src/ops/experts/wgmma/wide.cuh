// Wide tiles of experts.wgmma: tokens are the left operand, 64 of them per warpgroup, the tile's 256 weight rows the right
// one. A warpgroup's accumulators are 64 tokens times 256 weight rows; a thread holds of two tokens, 8 apart, the weight
// rows 8 j + 2 pair + {0, 1}, sums[4 j + {0, 1}] of the first token and sums[4 j + {2, 3}] of the second. With a gate even
// j are gate rows and odd j the up rows of the same outputs.
#pragma once

#include "ops/experts/wgmma/products.cuh"

namespace mixlane::experts_gpu {

inline constexpr int kWideSums = 128;      // of a thread
inline constexpr int kWideGroupRows = 64;  // tokens of a warpgroup

struct WideDescriptors {
  uint64_t tokens, weights;
  template <Operands kOperands>
  __device__ WideDescriptors(const Pipeline<kOperands>& pipe, uint32_t group)
      : tokens(ptx::swizzled_rows(ptx::shared_address(pipe.tokens()) + group * kWideGroupRows * kRowBytes)),
        weights(ptx::swizzled_rows(ptx::shared_address(pipe.weights()))) {}
};

template <Product kProduct>
__device__ void multiply_wide_bf16(Pipeline<Operands::bf16>& pipe, uint32_t group, uint32_t num_steps,
                                   float (&sums)[kWideSums]) {
#pragma unroll
  for (int i = 0; i < kWideSums; ++i) sums[i] = 0.0f;
  StagesInFlight in_flight;
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    in_flight.drain_unless_full(pipe);
    wait_stage<kProduct != Product::down>(pipe);
    const WideDescriptors at(pipe, group);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRowProducts; ++k)
      ptx::Wgmma<256>::mma<ptx::MatrixType::bf16>(sums, at.tokens + k * ptx::kDescriptorStep,
                                                  at.weights + k * ptx::kDescriptorStep, true);
    in_flight.commit(pipe);
  }
  in_flight.drain();
}

// Starts the products of a stage with half of the weight rows.
__device__ inline void multiply_wide_half(const WideDescriptors& at, int half, float (&part)[kWideSums / 2]) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kRowProducts; ++k)
    ptx::Wgmma<128>::mma<ptx::MatrixType::e4m3>(
        part, at.tokens + k * ptx::kDescriptorStep,
        at.weights + ptx::descriptor_rows(128) * static_cast<uint64_t>(half) + k * ptx::kDescriptorStep, k > 0);
  ptx::wgmma_commit();
}

// Sums of 128 of k leave the tensor cores; the other warpgroup's products fill these meanwhile. Blocks of 128 weight rows
// are the halves of the tile or, with a gate, the gate's and up's: the caller sees to it that they do not begin inside.
template <Product kProduct, Operands kOperands>
__device__ void multiply_wide_e4m3(Pipeline<kOperands>& pipe, uint32_t group, const Place& place, uint32_t num_steps,
                                   float (&sums)[kWideSums]) {
  constexpr bool kScaled = kOperands == Operands::e4m3_block;
  constexpr int kHalf = kWideSums / 2;
#pragma unroll
  for (int i = 0; i < kWideSums; ++i) sums[i] = 0.0f;
  float part[kHalf];
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
    const WideDescriptors at(pipe, group);
    multiply_wide_half(at, 0, part);
    float scales[2][2] = {};  // [block of weights, token]
    if constexpr (kScaled) {
      const float2 weights = *reinterpret_cast<const float2*>(pipe.scales());
      const float* tokens = pipe.token_scales() + place.group * kWideGroupRows + place.warp * 16 + place.row;
      scales[0][0] = tokens[0] * weights.x;
      scales[0][1] = tokens[8] * weights.x;
      scales[1][0] = tokens[0] * weights.y;
      scales[1][1] = tokens[8] * weights.y;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half > 0) multiply_wide_half(at, half, part);
      ptx::wgmma_wait<0>();
      if (half > 0) {
        release_stage(pipe.empty());
      }
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        float& sum = sums[half * kHalf + i];
        const int block = kProduct == Product::gate_up ? i / 4 % 2 : half;
        sum = kScaled ? __fmaf_rn(part[i], scales[block][i / 2 % 2], sum) : sum + part[i];
      }
    }
  }
}

}  // namespace mixlane::experts_gpu
