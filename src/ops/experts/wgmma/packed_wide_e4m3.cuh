// Wide tiles of packed e2m1 weights and e4m3 tokens: the weights are decoded to e4m3 by a warpgroup of its own. What a
// group's scale is below the largest one of its stage, or of its row in the stage, goes into the decoded values
// (FoldedScales).
#pragma once

#include "ops/experts/wgmma/decoders.cuh"
#include "ops/experts/wgmma/packed_e4m3.cuh"
#include "ops/experts/wgmma/wide.cuh"

namespace mixlane::experts_gpu {

// Eight e2m1 codes as e4m3: magnitudes by an entry of the table, signs moved from bits 4 i + 3 to bits 8 i + 7.
__device__ __forceinline__ uint2 decode_eight(uint32_t codes, const uint2& entry) {
  const uint32_t magnitudes = codes & 0x77777777u, shifted = codes * 16u;
  const auto look_up = [&](uint32_t four) {  // by the lower 16 bits
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(entry.x), "r"(entry.y), "r"(four));
    return bytes;
  };
  const uint32_t low_signs = __byte_perm(codes, shifted, 0x1504), high_signs = __byte_perm(codes, shifted, 0x3726);
  return make_uint2(look_up(magnitudes) | (low_signs & 0x80808080u), look_up(magnitudes >> 16) | (high_signs & 0x80808080u));
}

__device__ __forceinline__ uint4 decode_sixteen(uint32_t first, uint32_t second, const uint2& entry) {
  const uint2 low = decode_eight(first, entry), high = decode_eight(second, entry);
  return make_uint4(low.x, low.y, high.x, high.y);
}

// Each thread has two rows, and a packet of codes, 32 of k with one scale, at a time. Eight neighbouring lanes have eight
// rows: what they read, and what they write, lies in different banks.
__device__ __forceinline__ void decode_stage(Pipeline<Operands::e2m1_e4m3>& pipe, const Shared& shared) {
  const uint32_t row = unknown(threadIdx.x) % ptx::kWarpgroupThreads;
  const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1_e4m3>::kWeightRowBytes;
  const auto* words = reinterpret_cast<const uint32_t*>(pipe.scales()) + row;
  const uint32_t common = common_scale(pipe.scales());
  const uint2* table = decoding_table<Operands::e2m1_e4m3>(shared);
  const uint32_t to = offset_of(pipe.decoded()) + row * kRowBytes + row % 8 * 16;
  // A packet and its entry are asked for before the one before is decoded.
  const auto below_of = [&](uint32_t i) {
    const uint32_t word = words[i * ptx::kWarpgroupThreads];
    return (common ? common : largest_scale(word)) * 0x01010101u - word;
  };
  const auto packet_of = [&](uint32_t p) {
    return *reinterpret_cast<const uint4*>(codes + p / 4 * ptx::kWarpgroupThreads * 64 + (p % 4 ^ row / 2 % 4) * 16);
  };
  constexpr uint32_t kPackets = kTileRows / ptx::kWarpgroupThreads * 4;
  uint32_t below = below_of(0);
  uint4 packet = packet_of(0);
  uint2 entry = table[below & 0xffu];
  pipe.wait_used();
#pragma unroll
  for (uint32_t p = 0; p < kPackets; ++p) {
    uint4 next_packet{};
    uint2 next_entry{};
    if (p + 1 < kPackets) {
      if ((p + 1) % 4 == 0) below = below_of((p + 1) / 4);
      next_packet = packet_of(p + 1);
      next_entry = table[below >> (8 * ((p + 1) % 4)) & 0xffu];
    }
    const uint32_t at = to + p / 4 * ptx::kWarpgroupThreads * kRowBytes;
    store_packet(at ^ (p % 4 * 32), decode_sixteen(packet.x, packet.y, entry));
    store_packet(at ^ (p % 4 * 32 + 16), decode_sixteen(packet.z, packet.w, entry));
    packet = next_packet;
    entry = next_entry;
  }
  pipe.publish_decoded();
  pipe.advance_decoded();
}

__device__ __forceinline__ void release_decoded_stage(Pipeline<Operands::e2m1_e4m3>& pipe) {
  pipe.release_decoded();
  release_stage(pipe.empty());
}

// Products of a wide tile's tokens with kN of its weight rows, from kFirst on. The registers that 128 of them take are not
// there beside the decoders'.
template <int kFirst, int kN>
class WidePart {
 public:
  static constexpr int kMost = 128;  // weight rows
  using Values = float[kMost / 2];

  __device__ __forceinline__ static void start(const WideDescriptors& at, Values& part) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRowProducts; ++k)
      ptx::Wgmma<kN>::template mma<ptx::MatrixType::e4m3>(
          part, at.tokens + k * ptx::kDescriptorStep, at.weights + ptx::descriptor_rows(kFirst) + k * ptx::kDescriptorStep,
          k > 0);
    ptx::wgmma_commit();
  }
  // Times their rows' scales, powers of two.
  __device__ __forceinline__ static void scale_rows(const Pipeline<Operands::e2m1_e4m3>& pipe, Values& part) {
    const auto* words = reinterpret_cast<const uint32_t*>(pipe.scales()) + kFirst + 2 * (unknown(threadIdx.x) % 4);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) part[i] *= scale_of(largest_scale(words[i / 4 * 8 + i % 2]));
    __syncwarp();
  }
  __device__ __forceinline__ static void add(const Values& part, const float (&scales)[2], float (&sums)[kWideSums]) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sums[kFirst / 2 + i] = __fmaf_rn(part[i], scales[i / 2 % 2], sums[kFirst / 2 + i]);
  }
};

// One wide tile: as e4m3 weights' where the stage's rows have one scale, else with scales of each row. Where the thread
// stands is worked out in each stage: all registers are wanted.
template <Product kProduct>
__device__ __forceinline__ void multiply_wide_packed(Pipeline<Operands::e2m1_e4m3>& pipe, uint32_t group, uint32_t num_steps,
                                                     float (&sums)[kWideSums]) {
  using First = WidePart<0, 128>;
  using Second = WidePart<128, 128>;
#pragma unroll
  for (int i = 0; i < kWideSums; ++i) sums[i] = 0.0f;
  First::Values part;
  // Worked out for each half of the weight rows: no registers for it in between.
  const auto operands = [&] {
    WideDescriptors at(pipe, group);
    at.weights = ptx::swizzled_rows(ptx::shared_address(pipe.decoded()));
    return at;
  };
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance(), pipe.advance_decoded()) {
    wait_stage<kProduct != Product::down>(pipe);
    pipe.wait_decoded();
    First::start(operands(), part);
    const Place place{.group = group};
    const float* token_scales = pipe.token_scales() + place.group * kWideGroupRows + place.warp * 16 + place.row;
    const uint32_t common = __shfl_sync(~0u, common_scale(pipe.scales()), 0);  // so that stages stay in uniform registers
    const bool own = common == 0;
    const float factor = own ? 1.0f : scale_of(common);
    const float scales[2] = {token_scales[0] * factor, token_scales[8] * factor};
    ptx::wgmma_wait<0>();
    if (own) First::scale_rows(pipe, part);
    First::add(part, scales, sums);
    Second::start(operands(), part);
    ptx::wgmma_wait<0>();
    if (own) Second::scale_rows(pipe, part);
    release_decoded_stage(pipe);
    Second::add(part, scales, sums);
  }
}

}  // namespace mixlane::experts_gpu
