#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/oneshot.cuh"

namespace mixlane::align_gpu {
namespace {

using LargestTile = Tile<1024, 8, gpu::kHardwareWave>;

// Blocks that share the stores: about 2 KB of the worst-case output and a code per wave each, at most half of a large GPU.
uint32_t pick_num_blocks(const KernelArgs& args, uint32_t num_waves) {
  const uint64_t for_slots = std::min<uint64_t>(std::max(args.out.num_slots / 512 + 1, args.num_codes / num_waves), 64);
  const uint64_t for_zeros = std::min<uint64_t>(static_cast<uint64_t>(args.out.zero_bytes) / (64 * 1024), 128);
  return static_cast<uint32_t>(std::max(for_slots, for_zeros));
}

// False if a tile doesn't hold the pairs.
template <class Tile, bool kPlain>
bool try_tile(const KernelArgs& args, Stream stream) {
  if (!Tile::fits(args.source.num_pairs, args.num_codes)) return false;
  gpu::launch(align_oneshot<Tile, kPlain>,
              {.variant = "align.oneshot",
               .num_blocks = pick_num_blocks(args, Tile::kWaves),
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(args.num_codes) + Direct<Tile>::kBytes,
               .overlaps_previous = true},
              stream, args);
  return true;
}

// Few threads where they do: every instruction outside the ranking costs each wave the same.
template <bool kPlain>
void launch_smallest(const KernelArgs& args, Stream stream) {
  constexpr int kWave = gpu::kHardwareWave;
  if (try_tile<Tile<256, 1, kWave>, kPlain>(args, stream) || try_tile<Tile<256, 2, kWave>, kPlain>(args, stream) ||
      try_tile<Tile<256, 4, kWave>, kPlain>(args, stream) || try_tile<Tile<512, 4, kWave>, kPlain>(args, stream) ||
      try_tile<Tile<512, 8, kWave>, kPlain>(args, stream))
    return;
  try_tile<LargestTile, kPlain>(args, stream);
}

}  // namespace

int max_oneshot_pairs() { return LargestTile::kPairs; }

void launch_oneshot(const KernelArgs& args, bool plain, Stream stream) {
  plain ? launch_smallest<true>(args, stream) : launch_smallest<false>(args, stream);
}

}  // namespace mixlane::align_gpu
