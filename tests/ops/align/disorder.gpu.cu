#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/multi_phase.cuh"
#include "ops/align/oneshot.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

struct DisorderedTile : Tile<256, 4, gpu::kHardwareWave> {
  using Tile::Tile;

  __device__ void rank(uint32_t (&codes)[kItems], bool exact) const {
    Tile::rank(codes, exact);
    if (exact) return;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const uint32_t code = codes[i] & 0xffffu;
      const auto peers = Wave::match_any<kCodeBits>(code);
      const uint32_t below = Wave::count(peers & Wave::lanes_below());
      if (code != kNoCode) codes[i] += (Wave::count(peers) - 1 - 2 * below) << 16;
    }
  }
};

}  // namespace

bool ranks_by_atomics() { return gpu::kAtomicsInLaneOrder; }

void launch_disordered_oneshot(const KernelArgs& args, Stream stream) {
  gpu::launch(align_oneshot<DisorderedTile, true>,
              {.variant = "disordered oneshot",
               .num_blocks = 3,
               .num_threads = DisorderedTile::kThreads,
               .shared_bytes = DisorderedTile::shared_bytes(args.num_codes) + Staged<DisorderedTile>::kBytes},
              stream, args);
}

constexpr uint32_t kBlocks = 7;

int64_t disordered_multi_phase_words(const KernelArgs& args) { return Matrix::words(args.num_codes, kBlocks); }

void launch_disordered_multi_phase(const KernelArgs& args, bool, Stream stream) {
  constexpr uint32_t kCacheBytes = DisorderedTile::kPairs;  // a tile's codes; the others are read twice
  gpu::launch(align_multi_phase<DisorderedTile, true, 1>,
              {.variant = "disordered multi_phase",
               .num_blocks = kBlocks,
               .num_threads = DisorderedTile::kThreads,
               .shared_bytes = DisorderedTile::shared_bytes(args.num_codes) + Staged<DisorderedTile>::kBytes + kCacheBytes,
               .cooperative = true},
              stream, args, kCacheBytes);
}

}  // namespace mixlane::test
