// The warpgroup of experts.wgmma that decodes packed e2m1 weights, a stage ahead of the products: into slots of shared
// memory that hold them as the copy engine would have brought them, a swizzled row of 128 bytes for each of the tile's. Of
// narrow tiles it decodes nothing: there those who multiply do it in registers.
#pragma once

#include "ops/experts/wgmma/pipeline.cuh"

namespace mixlane::experts_gpu {

// Where a thread of the warpgroup stands: each decodes a packet of a row's codes at a time, 32 of k, which have one scale.
// Eight neighbouring lanes have eight rows: what they read, and what they write, lies in different banks.
struct DecoderPlace {
  uint32_t lane = unknown(threadIdx.x) % 32;
  uint32_t warp = unknown(threadIdx.x) % ptx::kWarpgroupThreads / 32;
  uint32_t row = lane % 8;  // of eight
  uint32_t octet = lane / 8;

  // Packet c of a row of codes.
  __device__ uint32_t packet(uint32_t c) const { return (c ^ row / 2) % 4 * 16; }
};

// From the beginning of shared memory, where bits of an address can be changed.
__device__ inline uint32_t offset_of(const std::byte* in_shared) {
  return static_cast<uint32_t>(in_shared - shared_memory());
}
__device__ inline void store_packet(uint32_t offset, const uint4& packet) {
  *reinterpret_cast<uint4*>(shared_memory() + offset) = packet;
}

// Whether there is anything to do for them in this launch.
__device__ inline bool has_decoders() { return fixed().plan.wide_bytes > 0; }

// decode_stage(pipe, shared), of the file that instantiates it: a full stage's weights into its slots.
template <Operands kOperands>
class Decoders {
 public:
  __device__ Decoders(const Shared& shared, Pipeline<kOperands>& pipe) : shared_(shared), pipe_(pipe) {}

  __device__ __forceinline__ void run(const Tiles& tiles) {
    bool narrow_before = false;
    uint32_t phase = 0;
    tiles.for_each_part([&](uint32_t item, uint32_t first, uint32_t end) {
      const Tile tile = tiles.tile(item, first, end, ptx::cluster_rank());
      uint32_t num_steps = tile.end_step - tile.first_step;
      if (!tile.wide) {
        for (; num_steps > 0; --num_steps) pipe_.advance();
        narrow_before = true;
        return;
      }
      if (narrow_before) {
        ptx::mbarrier_wait(&fixed().wide_begins, phase);
        phase ^= 1;
        narrow_before = false;
      }
      for (; num_steps > 0; --num_steps, pipe_.advance()) {
        pipe_.wait_full();
        decode_stage(pipe_, shared_);
      }
    });
  }

 private:
  const Shared& shared_;
  Pipeline<kOperands>& pipe_;
};

}  // namespace mixlane::experts_gpu
