#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

using LargestTile = Tile<1024, 8, 32>;
constexpr uint32_t kLargestCluster = 16;

template <class Tile, uint32_t kBlocks, bool kPlain>
void launch_tile(const KernelArgs& args, uint32_t num_clusters, Stream stream) {
  gpu::launch(align_cluster<Tile, kBlocks, kPlain>,
              {.variant = "align.cluster",
               .num_blocks = kBlocks * num_clusters,
               .num_threads = Tile::kThreads,
               .shared_bytes =
                   Tile::shared_bytes(args.num_codes) + Staged<Tile>::kBytes + ClusterCounts<kBlocks>::bytes(args.num_codes),
               .cluster_blocks = kBlocks,
               .overlaps_previous = true},
              stream, args);
}

// False if the tiles of one cluster don't hold the pairs. kBlocksInAll: take the stores.
template <class Tile, uint32_t kBlocks, uint32_t kBlocksInAll>
bool try_tile(const KernelArgs& args, Stream stream) {
  if (!Tile::fits(even_share(args.source.num_pairs, kBlocks), args.num_codes)) return false;
  launch_tile<Tile, kBlocks, true>(args, kBlocksInAll / kBlocks, stream);
  return true;
}

}  // namespace

int max_cluster_pairs() { return kLargestCluster * LargestTile::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  if (!plain) return launch_tile<LargestTile, kLargestCluster, false>(args, 1, stream);
  // The fewer blocks exchange their counts, the sooner that is done; of few codes the rows are short.
  constexpr uint32_t kFewCodes = 256;
  if ((args.num_codes <= kFewCodes && try_tile<Tile<256, 2, 32>, 8, 64>(args, stream)) ||
      try_tile<Tile<512, 2, 32>, 4, 32>(args, stream) || try_tile<Tile<512, 2, 32>, 8, 64>(args, stream) ||
      try_tile<Tile<512, 4, 32>, 8, 32>(args, stream) || try_tile<Tile<512, 4, 32>, kLargestCluster, 32>(args, stream) ||
      try_tile<Tile<512, 8, 32>, kLargestCluster, 32>(args, stream))
    return;
  launch_tile<LargestTile, kLargestCluster, true>(args, 1, stream);
}

}  // namespace mixlane::align_gpu
