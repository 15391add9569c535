#include "disorder.cuh"
#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/multi_phase.cuh"
#include "ops/align/oneshot.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

using Disordered = DisorderedTile<256, 4>;

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

}  // namespace mixlane::test
