#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/multi_phase_gather.cuh"
#include "ops/align/oneshot.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

// Of code | rank << 16, the ranks that one atomic gave.
template <class Wave, int kCount>
__device__ void reverse_ranks(uint32_t (&ranked)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t code = ranked[i] & 0xffffu;
    const auto peers = Wave::template match_any<kCodeBits>(code);
    const uint32_t below = Wave::count(peers & Wave::lanes_below());
    if (code != kNoCode) ranked[i] += (Wave::count(peers) - 1 - 2 * below) << 16;
  }
}

struct DisorderedTile : Tile<256, 4, gpu::kHardwareWave> {
  using Tile::Tile;

  __device__ void rank(uint32_t (&codes)[kItems], bool exact) const {
    Tile::rank(codes, exact);
    if (!exact) reverse_ranks<Wave>(codes);
  }
};

struct DisorderedRanks {
  template <class Wave, int kCount>
  __device__ static void rank(uint16_t* counters, uint32_t (&codes)[kCount]) {
    RanksByAtomics::rank<Wave>(counters, codes);
    reverse_ranks<Wave>(codes);
  }
};
using DisorderedSorter = TileSorter<256, 16, gpu::kHardwareWave, 1, DisorderedRanks>;

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

int64_t disordered_gather_words(const KernelArgs& args) {
  return GatherSpace<DisorderedSorter>::words(args.source.num_pairs, args.num_codes, kBlocks);
}

void launch_disordered_gather(const KernelArgs& args, bool plain, Stream stream) {
  gpu::launch(plain ? align_multi_phase_gather<DisorderedSorter, true> : align_multi_phase_gather<DisorderedSorter, false>,
              {.variant = "disordered gather",
               .num_blocks = kBlocks,
               .num_threads = DisorderedSorter::kThreads,
               .shared_bytes = gather_shared_bytes<DisorderedSorter>(args.num_codes),
               .cooperative = true},
              stream, args);
}

}  // namespace mixlane::test
