#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

constexpr uint32_t kNumBlocks = 16;
using TinyTile = Tile<256, 1, 32>;
using SmallTile = Tile<256, 4, 32>;
using MediumTile = Tile<512, 8, 32>;
using LargeTile = Tile<1024, 8, 32>;

template <class Tile, bool kPlain>
void launch_tile(const KernelArgs& args, Stream stream) {
  gpu::launch(align_cluster<Tile, kPlain>,
              {.variant = "align.cluster",
               .num_blocks = kNumBlocks,
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(args.num_codes) + num_quads(args.num_codes) * 8,
               .cluster_blocks = kNumBlocks,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace

int max_cluster_pairs() { return kNumBlocks * LargeTile::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  const uint32_t share = (args.source.num_pairs / kNumBlocks + 32) / 32 * 32;
  if (!plain)
    launch_tile<LargeTile, false>(args, stream);
  else if (TinyTile::fits(share, args.num_codes))
    launch_tile<TinyTile, true>(args, stream);
  else if (SmallTile::fits(share, args.num_codes))
    launch_tile<SmallTile, true>(args, stream);
  else if (MediumTile::fits(share, args.num_codes))
    launch_tile<MediumTile, true>(args, stream);
  else
    launch_tile<LargeTile, true>(args, stream);
}

}  // namespace mixlane::align_gpu
