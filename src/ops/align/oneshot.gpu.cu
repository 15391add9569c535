#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/oneshot.cuh"

namespace mixlane::align_gpu {
namespace {

using SmallestTile = Tile<256, 1, gpu::kHardwareWave>;
using SmallTile = Tile<256, 4, gpu::kHardwareWave>;
using MediumTile = Tile<512, 4, gpu::kHardwareWave>;
using DenseTile = Tile<512, 8, gpu::kHardwareWave>;
using LargeTile = Tile<1024, 8, gpu::kHardwareWave>;

// Blocks that share the stores: about 4 KB of the worst-case output and a code per wave each, at most a quarter of a
// large GPU.
uint32_t pick_num_blocks(const KernelArgs& args, uint32_t num_waves) {
  const uint64_t for_slots = std::min<uint64_t>(std::max(args.out.num_slots / 1024 + 1, args.num_codes / num_waves), 32);
  const uint64_t for_zeros = std::min<uint64_t>(static_cast<uint64_t>(args.out.zero_bytes) / (64 * 1024), 128);
  return static_cast<uint32_t>(std::max(for_slots, for_zeros));
}

template <class Tile, bool kPlain>
void launch_tile(const KernelArgs& args, Stream stream) {
  gpu::launch(align_oneshot<Tile, kPlain>,
              {.variant = "align.oneshot",
               .num_blocks = pick_num_blocks(args, Tile::kWaves),
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(args.num_codes) + Direct<Tile>::kBytes,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace

int max_oneshot_pairs() { return LargeTile::kPairs; }

void launch_oneshot(const KernelArgs& args, bool plain, Stream stream) {
  // Few threads where they do: every instruction outside the ranking costs each wave the same.
  if (plain && SmallestTile::fits(args.source.num_pairs, args.num_codes))
    launch_tile<SmallestTile, true>(args, stream);
  else if (plain && SmallTile::fits(args.source.num_pairs, args.num_codes))
    launch_tile<SmallTile, true>(args, stream);
  else if (plain && MediumTile::fits(args.source.num_pairs, args.num_codes))
    launch_tile<MediumTile, true>(args, stream);
  else if (plain && DenseTile::fits(args.source.num_pairs, args.num_codes))
    launch_tile<DenseTile, true>(args, stream);
  else if (plain)
    launch_tile<LargeTile, true>(args, stream);
  else
    launch_tile<LargeTile, false>(args, stream);
}

}  // namespace mixlane::align_gpu
