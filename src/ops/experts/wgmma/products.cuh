// The multiplying warpgroups of experts.wgmma: accumulators of two 64-row blocks of the weights' tile times its tokens.
#pragma once

#include "gpu/ptx/wgmma.cuh"
#include "ops/experts/wgmma/pipeline.cuh"

namespace mixlane::experts_gpu {

inline constexpr int kGroupBlocks = 2;  // of 64 rows, per warpgroup
// Of a tile of so many tokens.
template <int kN>
using Accumulators = float[kGroupBlocks][kN / 2];

// The multiplying warpgroup of a thread, by whole warps: the same for all lanes, which the compiler believes, so that
// descriptors stay in uniform registers (30 instructions less in each stage). Not for each tile anew: with a shuffle in
// the loop over tiles stages leave them.
__device__ inline uint32_t own_group() { return __shfl_sync(~0u, threadIdx.x / ptx::kWarpgroupThreads - 1, 0); }

// Where a thread stands in its warpgroup and in the tile.
struct Place {
  uint32_t group;  // own_group()
  uint32_t in_block = unknown(threadIdx.x);
  uint32_t thread = in_block % ptx::kWarpgroupThreads;  // in the group
  uint32_t warp = thread / 32;                          // in the group
  uint32_t lane = in_block % 32;
  uint32_t row = lane / 4;       // in eight rows
  uint32_t pair = in_block % 4;  // tokens 8 j + 2 pair + {0, 1}

  // The output that accumulators 4 j + 2 half + {0, 1} of a block are of; with a gate, those of both halves.
  template <Product kProduct>
  __device__ uint32_t output(const Tile& tile, int block, int half) const {
    const uint32_t b = static_cast<uint32_t>(block);
    if (kProduct == Product::gate_up) return tile.index * (kTileRows / 2) + group * 64 + b * 32 + warp * 8 + row;
    return tile.index * kTileRows + group * 128 + b * 64 + warp * 16 + static_cast<uint32_t>(half) * 8 + row;
  }
  // The weight row behind them, inside the matrix also where the tile is not.
  template <Product kProduct>
  __device__ uint32_t weight_row(const WgmmaArgs& args, const Tile& tile, int block, int half) const {
    if (kProduct == Product::gate_up)
      return min(output<kProduct>(tile, block, 0), args.num_outputs - 1) + (half ? args.num_outputs : 0);
    return min(output<kProduct>(tile, block, half), args.weight_rows - 1);
  }
};

// The first row of this warpgroup's part of a stage's weights, and the tokens.
struct Descriptors {
  uint64_t weights, tokens;
  template <Operands kOperands>
  __device__ Descriptors(const Pipeline<kOperands>& pipe, const Place& place)
      : weights(ptx::swizzled_rows(ptx::shared_address(pipe.weights())) + place.group * ptx::descriptor_rows(128)),
        tokens(ptx::swizzled_rows(ptx::shared_address(pipe.tokens()))) {}
};

inline constexpr int kRowProducts = kRowBytes / 32;  // that a row of 128 bytes is good for

template <bool kCopied, Operands kOperands>
__device__ void wait_stage(const Pipeline<kOperands>& pipe) {
  pipe.wait_full();
  // What threads have copied, the tensor cores read through another proxy than it was written.
  if constexpr (kCopied) ptx::acquire_copies();
}

template <int kN>
__device__ void clear(Accumulators<kN>& sums) {
#pragma unroll
  for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sums[b][i] = 0.0f;
}

// Products that were started and have not released their stage: at most those of one stage while the next one's start.
class StagesInFlight {
 public:
  __device__ explicit StagesInFlight(bool apart = false) : apart_(apart) {}
  // A stage that is not there yet may be waiting for the one that these products hold.
  template <Operands kOperands>
  __device__ void drain_unless_full(const Pipeline<kOperands>& next) {
    if (held_ && !next.is_full()) drain();
  }
  // What was started of the stage is a group.
  template <Operands kOperands>
  __device__ void commit(const Pipeline<kOperands>& started) {
    ptx::wgmma_commit();
    if (held_) {
      ptx::wgmma_wait<1>();
      release_stage(held_, apart_);
    }
    held_ = started.empty();
  }
  __device__ void drain() {
    ptx::wgmma_wait<0>();
    if (held_) release_stage(held_, apart_);
    held_ = nullptr;
  }

 private:
  uint64_t* held_ = nullptr;
  bool apart_;
};

// One tile of bf16 operands.
template <Product kProduct, int kN>
__device__ void multiply_bf16(Pipeline<Operands::bf16>& pipe, const Place& place, uint32_t num_steps,
                              Accumulators<kN>& sums) {
  clear<kN>(sums);
  StagesInFlight in_flight(pipe.apart());
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    in_flight.drain_unless_full(pipe);
    wait_stage<kProduct != Product::down>(pipe);
    const Descriptors at(pipe, place);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRowProducts; ++k)
#pragma unroll
      for (int b = 0; b < kGroupBlocks; ++b)
        ptx::Wgmma<kN>::template mma<ptx::MatrixType::bf16>(
            sums[b], at.weights + ptx::descriptor_rows(64 * b) + k * ptx::kDescriptorStep,
            at.tokens + k * ptx::kDescriptorStep, true);
    in_flight.commit(pipe);
  }
  in_flight.drain();
}

// Adds a block's products with kN tokens over 128 of k, times the scales of their tokens and of their two weight rows.
template <int kN>
__device__ void promote(float* sums, const float (&part)[kN / 2], const float2 (&tokens)[kN / 8], float low, float high) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    float* sum = sums + 4 * j;
    sum[0] = __fmaf_rn(part[4 * j], tokens[j].x * low, sum[0]);
    sum[1] = __fmaf_rn(part[4 * j + 1], tokens[j].y * low, sum[1]);
    sum[2] = __fmaf_rn(part[4 * j + 2], tokens[j].x * high, sum[2]);
    sum[3] = __fmaf_rn(part[4 * j + 3], tokens[j].y * high, sum[3]);
  }
}

// Which of a stage's weight scales are a thread's: those of the two rows of each of its blocks.
template <Product kProduct>
struct OwnScales {
  bool later[kGroupBlocks] = {};  // in up's second block

  __device__ OwnScales(const WgmmaArgs& args, const Tile& tile, const Place& place) {
    if constexpr (kProduct == Product::gate_up) {
#pragma unroll
      for (int b = 0; b < kGroupBlocks; ++b)
        later[b] = place.weight_row<kProduct>(args, tile, b, 1) / 128 > (args.num_outputs + tile.index * 128) / 128;
    }
  }
  __device__ float2 of_block(int b, const float4& weights, const Place& place) const {
    if constexpr (kProduct == Product::gate_up) return make_float2(weights.x, later[b] ? weights.z : weights.y);
    const float scale = place.group ? weights.y : weights.x;
    return make_float2(scale, scale);
  }
};

// Starts a block's products of a stage.
template <int kN>
__device__ void multiply_block(const Descriptors& at, int b, float (&part)[kN / 2]) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kRowProducts; ++k)
    ptx::Wgmma<kN>::template mma<ptx::MatrixType::e4m3>(part,
                                                        at.weights + ptx::descriptor_rows(64 * b) + k * ptx::kDescriptorStep,
                                                        at.tokens + k * ptx::kDescriptorStep, k > 0);
  ptx::wgmma_commit();
}

// One tile of e4m3 operands. The tensor cores keep few bits when they add, so that sums beyond 128 of k are in registers.
// Few tokens' products are latency, that of both blocks at a time; many tokens' are one block's at a time, and the other
// warpgroup's fill the tensor cores in between.
template <Product kProduct, int kN>
__device__ void multiply_e4m3_block(Pipeline<Operands::e4m3_block>& pipe, const Place& place, uint32_t num_steps,
                                    const OwnScales<kProduct>& own, Accumulators<kN>& sums) {
  constexpr int kAtOnce = kN <= 32 ? kGroupBlocks : 1;  // blocks
  clear<kN>(sums);
  float part[kAtOnce][kN / 2] = {};
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
    const Descriptors at(pipe, place);
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) multiply_block<kN>(at, b, part[b]);
    const float4 weights = *reinterpret_cast<const float4*>(pipe.scales());
    float2 tokens[kN / 8];
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
      tokens[j] = *reinterpret_cast<const float2*>(pipe.token_scales() + 8 * j + 2 * place.pair);
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      if (b >= kAtOnce) multiply_block<kN>(at, b, part[b % kAtOnce]);
      const float2 scales = own.of_block(b, weights, place);
      if (b < kAtOnce - 1)
        ptx::wgmma_wait<1>();
      else
        ptx::wgmma_wait<0>();
      if (b == kGroupBlocks - 1) release_stage(pipe.empty(), pipe.apart());
      promote<kN>(sums[b], part[b % kAtOnce], tokens, scales.x, scales.y);
    }
  }
}

// The same with scales per token and per row, which are the epilogue's.
template <Product kProduct, int kN>
__device__ void multiply_e4m3_channel(Pipeline<Operands::e4m3_channel>& pipe, const Place& place, uint32_t num_steps,
                                      Accumulators<kN>& sums) {
  clear<kN>(sums);
  float part[kN / 2] = {};
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
    const Descriptors at(pipe, place);
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      multiply_block<kN>(at, b, part);
      ptx::wgmma_wait<0>();
      if (b == kGroupBlocks - 1) release_stage(pipe.empty(), pipe.apart());
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sums[b][i] += part[i];
    }
  }
}

}  // namespace mixlane::experts_gpu
