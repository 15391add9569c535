#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

using LargestTile = Tile<1024, 8, 32>;

template <class Tile, bool kPlain>
void launch_tile(const KernelArgs& args, Stream stream) {
  gpu::launch(
      align_cluster<Tile, kPlain>,
      {.variant = "align.cluster",
       .num_blocks = kClusterBlocks,
       .num_threads = Tile::kThreads,
       .shared_bytes = Tile::shared_bytes(args.num_codes) + Staged<Tile>::kBytes + ClusterCounts::bytes(args.num_codes),
       .cluster_blocks = kClusterBlocks,
       .overlaps_previous = true},
      stream, args);
}

// The first of the tiles that takes the share of a block.
template <class Tile, class... Larger>
void launch_smallest(const KernelArgs& args, uint32_t share, Stream stream) {
  if constexpr (sizeof...(Larger) == 0) {
    launch_tile<Tile, true>(args, stream);
  } else {
    if (Tile::fits(share, args.num_codes))
      launch_tile<Tile, true>(args, stream);
    else
      launch_smallest<Larger...>(args, share, stream);
  }
}

}  // namespace

int max_cluster_pairs() { return kClusterBlocks * LargestTile::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  if (!plain) return launch_tile<LargestTile, false>(args, stream);
  const uint32_t share = even_share(args.source.num_pairs, kClusterBlocks);
  launch_smallest<Tile<256, 1, 32>, Tile<256, 2, 32>, Tile<512, 2, 32>, Tile<512, 4, 32>, Tile<1024, 4, 32>, LargestTile>(
      args, share, stream);
}

}  // namespace mixlane::align_gpu
