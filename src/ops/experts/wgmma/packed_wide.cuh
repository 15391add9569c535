// Wide tiles of packed e2m1 weights and bf16 tokens: the weights are decoded to bf16 by a warpgroup of its own.
#pragma once

#include "ops/experts/wgmma/decoders.cuh"
#include "ops/experts/wgmma/packed.cuh"
#include "ops/experts/wgmma/wide.cuh"

namespace mixlane::experts_gpu {

// Eight codes: 16 bytes. Neighbours' bytes, one of them four bits up, go to the lower bytes of two halves and their signs to
// the upper ones; from there two bits up is where bf16 times 2^-126 has them (decode_codes).
template <bool kLarge>
__device__ uint4 decode_eight(uint32_t codes, uint32_t scale) {
  const uint32_t shifted = codes << 4;
  uint32_t pairs[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(pairs[i]) : "r"(codes), "r"(shifted), "r"(0x80c4 + 0x1111 * i));
    pairs[i] = (pairs[i] << 2) & 0x81c081c0u;
  }
  scale_pairs<kLarge>(scale, pairs);
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// A thread's packets of half a stage, 64 of k: of this many rows.
inline constexpr int kHalfPackets = kTileRows * 2 / ptx::kWarpgroupThreads;

template <bool kLarge>
__device__ __forceinline__ void decode_packets(const uint4 (&packets)[kHalfPackets], const uint32_t (&scales)[kHalfPackets],
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

// The first 64 of k into one slot, the others into the next one. Codes and scales are asked for before the slot is waited
// for.
__device__ __forceinline__ void decode_stage(Pipeline<Operands::e2m1>& pipe, const Shared&) {
  const DecoderPlace place;
  const uint32_t row = place.warp * 64 + place.octet / 2 * 8 + place.row, group = place.octet % 2;
#pragma unroll 1
  for (uint32_t half = 0; half < 2; ++half, pipe.advance_decoded()) {
    const uint32_t c = 2 * half + group;
    const std::byte* codes = pipe.weights() + row * Step<Operands::e2m1>::kWeightRowBytes + place.packet(c);
    const auto* bytes = reinterpret_cast<const uint8_t*>(pipe.scales()) + row * 4 + c;
    uint4 packets[kHalfPackets];
    uint32_t scales[kHalfPackets], all = 0;
#pragma unroll
    for (int i = 0; i < kHalfPackets; ++i) {
      packets[i] = *reinterpret_cast<const uint4*>(codes + i * 16 * 64);
      scales[i] = bytes[i * 16 * 4];
      all |= scales[i];
    }
    const bool large = __any_sync(~0u, all >= 128);
    const uint32_t to = offset_of(pipe.decoded()) + row * kRowBytes + ((4 * group) ^ place.row) * 16;
    pipe.wait_used();
    if (large)
      decode_packets<true>(packets, scales, to);
    else
      decode_packets<false>(packets, scales, to);
    pipe.publish_decoded();
  }
}

// One wide tile.
template <Product kProduct>
__device__ __forceinline__ void multiply_wide_packed(Pipeline<Operands::e2m1>& pipe, uint32_t group, uint32_t num_steps,
                                                     float (&sums)[kWideSums]) {
#pragma unroll
  for (int i = 0; i < kWideSums; ++i) sums[i] = 0.0f;
  // Of half of the weight rows each: a product of 256 has more sums than ptxas lets a kernel of 512 threads have registers.
  auto& halves = reinterpret_cast<float(&)[2][kWideSums / 2]>(sums);
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    wait_stage<kProduct != Product::down>(pipe);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half, pipe.advance_decoded()) {
      pipe.wait_decoded();
      const uint64_t tokens = ptx::swizzled_rows(ptx::shared_address(pipe.tokens()) + half * pipe.token_bytes()) +
                              group * ptx::descriptor_rows(kWideGroupRows);
      const uint64_t weights = ptx::swizzled_rows(ptx::shared_address(pipe.decoded()));
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kRowProducts; ++k)
#pragma unroll
        for (int part = 0; part < 2; ++part)
          ptx::Wgmma<128>::mma<ptx::MatrixType::bf16>(halves[part], tokens + k * ptx::kDescriptorStep,
                                                      weights + part * ptx::descriptor_rows(128) + k * ptx::kDescriptorStep,
                                                      true);
      ptx::wgmma_commit();
      // Who decodes waits for the slot; the other warpgroup's products fill the tensor cores.
      ptx::wgmma_wait<0>();
      pipe.release_decoded();
    }
    release_stage(pipe.empty());
  }
}

}  // namespace mixlane::experts_gpu
