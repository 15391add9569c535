#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/oneshot.cuh"

namespace mixlane::align_gpu {
namespace {

using OneshotTile = Tile<1024, 8, gpu::kHardwareWave>;

// Blocks that share the stores: about 4 KB of the worst-case output each, at most a quarter of a large GPU.
uint32_t pick_num_blocks(const KernelArgs& args) {
  const uint64_t for_slots = std::min<uint64_t>(args.out.num_slots / 1024 + 1, 32);
  const uint64_t for_zeros = std::min<uint64_t>(static_cast<uint64_t>(args.out.zero_bytes) / (64 * 1024), 128);
  return static_cast<uint32_t>(std::max(for_slots, for_zeros));
}

}  // namespace

int max_oneshot_pairs() { return OneshotTile::kPairs; }

void launch_oneshot(const KernelArgs& args, bool plain, Stream stream) {
  const auto kernel = plain ? align_oneshot<OneshotTile, true> : align_oneshot<OneshotTile, false>;
  gpu::launch(kernel,
              {.variant = "align.oneshot",
               .num_blocks = pick_num_blocks(args),
               .num_threads = OneshotTile::kThreads,
               .shared_bytes = OneshotTile::shared_bytes(args.num_codes),
               .overlaps_previous = true},
              stream, args);
}

}  // namespace mixlane::align_gpu
