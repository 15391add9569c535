// A tile whose atomics are not in lane order: ranks of equal codes of an item come out reversed.
#pragma once

#include "ops/align/tile.cuh"

namespace mixlane::test {

template <int kThreads_, int kItems_>
struct DisorderedTile : align_gpu::Tile<kThreads_, kItems_, gpu::kHardwareWave> {
  using Ordered = align_gpu::Tile<kThreads_, kItems_, gpu::kHardwareWave>;
  using Ordered::Ordered;

  __device__ void rank(uint32_t (&codes)[kItems_], bool exact) const {
    using Wave = typename Ordered::Wave;
    Ordered::rank(codes, exact);
    if (exact) return;
#pragma unroll
    for (int i = 0; i < kItems_; ++i) {
      const uint32_t code = codes[i] & 0xffffu;
      const auto peers = Wave::template match_any<align_gpu::kCodeBits>(code);
      const uint32_t below = Wave::count(peers & Wave::lanes_below());
      if (code != align_gpu::kNoCode) codes[i] += (Wave::count(peers) - 1 - 2 * below) << 16;
    }
  }
};

}  // namespace mixlane::test
