#include "disorder.cuh"
#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/multi_phase_gather.cuh"
#include "ops/align/oneshot.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

using Disordered = DisorderedTile<256, 4>;

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
  gpu::launch(align_oneshot<Disordered, true>,
              {.variant = "disordered oneshot",
               .num_blocks = 3,
               .num_threads = Disordered::kThreads,
               .shared_bytes = Disordered::shared_bytes(args.num_codes) + Direct<Disordered>::kBytes},
              stream, args);
}

constexpr uint32_t kBlocks = 7;

int64_t disordered_multi_phase_words(const KernelArgs& args) { return Matrix::words(args.num_codes, kBlocks); }

void launch_disordered_multi_phase(const KernelArgs& args, bool, Stream stream) {
  constexpr uint32_t kCacheBytes = Disordered::kPairs;  // a tile's codes; the others are read twice
  gpu::launch(align_multi_phase<Disordered, true, 1>,
              {.variant = "disordered multi_phase",
               .num_blocks = kBlocks,
               .num_threads = Disordered::kThreads,
               .shared_bytes = Disordered::shared_bytes(args.num_codes) + Staged<Disordered>::kBytes + kCacheBytes,
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
