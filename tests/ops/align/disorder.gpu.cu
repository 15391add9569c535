#include "disorder.cuh"
#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/multi_phase_many.cuh"
#include "ops/align/oneshot.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

using Disordered = DisorderedTile<256, 4>;

// Positions of equal codes come out reversed.
struct DisorderedTakes {
  template <class Wave, class Counter, int kCount>
  __device__ static void take(Counter* counters, const uint32_t (&codes)[kCount], uint32_t (&positions)[kCount]) {
    TakesByAtomics::take<Wave>(counters, codes, positions);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto peers = Wave::template match_any<kCodeBits>(codes[i]);
      positions[i] += Wave::count(peers) - 1 - 2 * Wave::count(peers & Wave::lanes_below());
    }
  }
};
template <bool kPlain>
using DisorderedSorter = RegisterTile<256, 36, gpu::kHardwareWave, kPlain, uint32_t, DisorderedTakes>;

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

template <class Sorter>
void launch_many(const KernelArgs& args, Stream stream) {
  constexpr uint32_t kRows = 5;
  gpu::launch(align_multi_phase_many<Sorter>,
              {.variant = "disordered many",
               .num_blocks = kBlocks,
               .num_threads = Sorter::kThreads,
               .shared_bytes = many_shared_bytes<Sorter>(args.num_codes, kRows),
               .cooperative = true},
              stream, args, kRows);
}

void launch_disordered_many(const KernelArgs& args, bool plain, Stream stream) {
  if (plain)
    launch_many<DisorderedSorter<true>>(args, stream);
  else
    launch_many<DisorderedSorter<false>>(args, stream);
}

}  // namespace mixlane::test
