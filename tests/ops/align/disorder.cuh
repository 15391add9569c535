// A tile whose atomics are not in lane order: ranks of equal codes of an item come out reversed.
#pragma once

#include "ops/align/tile.cuh"

namespace mixlane::test {

// Of code | rank << 16, the ranks that one atomic gave.
template <class Wave, int kCount>
__device__ void reverse_ranks(uint32_t (&ranked)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t code = ranked[i] & 0xffffu;
    const auto peers = Wave::template match_any<align_gpu::kCodeBits>(code);
    const uint32_t below = Wave::count(peers & Wave::lanes_below());
    if (code != align_gpu::kNoCode) ranked[i] += (Wave::count(peers) - 1 - 2 * below) << 16;
  }
}

template <int kThreads_, int kItems_>
struct DisorderedTile : align_gpu::Tile<kThreads_, kItems_, gpu::kHardwareWave> {
  using Ordered = align_gpu::Tile<kThreads_, kItems_, gpu::kHardwareWave>;
  using Ordered::Ordered;

  __device__ void rank(uint32_t (&codes)[kItems_], bool exact) const {
    Ordered::rank(codes, exact);
    if (!exact) reverse_ranks<typename Ordered::Wave>(codes);
  }
};

}  // namespace mixlane::test
