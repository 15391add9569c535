// Packed e2m1 weights as e4m3: their decoding and their products with e4m3 tokens. What a group's scale is below the largest
// one of its stage, or of its row in the stage, goes into the decoded values (FoldedScales).
#pragma once

#include "ops/experts/wgmma_decoders.cuh"
#include "ops/experts/wgmma_packed_few_e4m3.cuh"
#include "ops/experts/wgmma_packed_scales.cuh"
#include "ops/experts/wgmma_wide.cuh"

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

__device__ __forceinline__ void decode_stage(Pipeline<Operands::e2m1_e4m3>& pipe, const Shared& shared) {
  const DecoderPlace place;
  const uint32_t row = place.warp * 64 + place.row, group = place.octet;
  const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1_e4m3>::kWeightRowBytes + place.packet(group);
  const auto* scales = reinterpret_cast<const uint8_t*>(pipe.scales()) + row * 4;
  const uint32_t common = common_scale(pipe.scales());
  const uint2* table = decoding_table<Operands::e2m1_e4m3>(shared);
  const uint32_t to = offset_of(pipe.decoded()) + row * kRowBytes + ((2 * group) ^ place.row) * 16;
  pipe.wait_used();
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    const uint4 packet = *reinterpret_cast<const uint4*>(codes + i * 8 * 64);
    uint32_t largest = common;
    if (common == 0) largest = largest_scale(reinterpret_cast<const uint32_t*>(scales)[i * 8]);
    const uint2 entry = table[largest - scales[i * 8 * 4 + group]];
    store_packet(to + i * 8 * kRowBytes, decode_sixteen(packet.x, packet.y, entry));
    store_packet((to ^ 16) + i * 8 * kRowBytes, decode_sixteen(packet.z, packet.w, entry));
  }
  pipe.publish_decoded();
  pipe.advance_decoded();
}

__device__ __forceinline__ void release_decoded_stage(Pipeline<Operands::e2m1_e4m3>& pipe) {
  pipe.release_decoded();
  release_stage(pipe.empty());
}

// One narrow tile: as e4m3 weights', but with scales of each row.
template <Product kProduct, int kN>
__device__ __forceinline__ void multiply_packed(Pipeline<Operands::e2m1_e4m3>& pipe, const Place& place, uint32_t num_steps,
                                                const Shared& shared, Accumulators<kN>& sums) {
  if constexpr (kN <= static_cast<int>(kFewTokens)) {
    if (!has_decoders()) return multiply_few<kProduct, kN>(pipe, place, num_steps, shared, sums);
  }
  clear<kN>(sums);
  float part[kN / 2] = {};
  const uint32_t row = place.group * 128 + place.warp * 16 + place.row;
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance(), pipe.advance_decoded()) {
    wait_stage<kProduct != Product::down>(pipe);
    pipe.wait_decoded();
    Descriptors at(pipe, place);
    at.weights = ptx::swizzled_rows(ptx::shared_address(pipe.decoded())) + place.group * ptx::descriptor_rows(128);
    multiply_block<kN>(at, 0, part);
    float2 tokens[kN / 8];
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
      tokens[j] = *reinterpret_cast<const float2*>(pipe.token_scales() + 8 * j + 2 * place.pair);
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      if (b > 0) multiply_block<kN>(at, b, part);
      const float low = folded_scale(largest_of_row(pipe.scales(), row + 64 * b));
      const float high = folded_scale(largest_of_row(pipe.scales(), row + 64 * b + 8));
      ptx::wgmma_wait<0>();
      if (b == kGroupBlocks - 1) release_decoded_stage(pipe);
      promote<kN>(sums[b], part, tokens, low, high);
    }
  }
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
    for (int i = 0; i < kN / 2; ++i) part[i] *= folded_scale(largest_scale(words[i / 4 * 8 + i % 2]));
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
__device__ __forceinline__ void multiply_wide_packed(Pipeline<Operands::e2m1_e4m3>& pipe, uint32_t num_steps,
                                                     float (&sums)[kWideSums]) {
  using First = WidePart<0, 128>;
  using Second = WidePart<128, 128>;
#pragma unroll
  for (int i = 0; i < kWideSums; ++i) sums[i] = 0.0f;
  First::Values part;
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance(), pipe.advance_decoded()) {
    wait_stage<kProduct != Product::down>(pipe);
    pipe.wait_decoded();
    const Place place;
    WideDescriptors at(pipe, place.group);
    at.weights = ptx::swizzled_rows(ptx::shared_address(pipe.decoded()));
    First::start(at, part);
    const float* token_scales = pipe.token_scales() + place.group * kWideGroupRows + place.warp * 16 + place.row;
    const uint32_t common = common_scale(pipe.scales());
    const bool own = common == 0;
    const float factor = own ? 1.0f : folded_scale(common);
    const float scales[2] = {token_scales[0] * factor, token_scales[8] * factor};
    ptx::wgmma_wait<0>();
    if (own) First::scale_rows(pipe, part);
    First::add(part, scales, sums);
    Second::start(at, part);
    ptx::wgmma_wait<0>();
    if (own) Second::scale_rows(pipe, part);
    release_decoded_stage(pipe);
    Second::add(part, scales, sums);
  }
}

}  // namespace mixlane::experts_gpu
