#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

using SmallTile = Tile<1024, 1, 32>;
using MediumTile = Tile<1024, 4, 32>;
using LargeTile = Tile<1024, 8, 32>;
// 8 blocks are what every device can place in a cluster.
constexpr uint32_t kMinBlocks = 8;
constexpr uint32_t kMaxBlocks = 16;

template <class Tile, bool kPlain>
void launch_tile(const KernelArgs& args, uint32_t num_blocks, Stream stream) {
  gpu::launch(align_cluster<Tile, kPlain>,
              {.variant = "align.cluster",
               .num_blocks = num_blocks,
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(args.num_codes) + num_quads(args.num_codes) * 8,
               .cluster_blocks = num_blocks,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace

int max_cluster_pairs() { return kMaxBlocks * LargeTile::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  const uint32_t num_pairs = args.source.num_pairs;
  const uint32_t num_blocks = num_pairs <= kMinBlocks * SmallTile::kPairs ? kMinBlocks : kMaxBlocks;
  if (!plain)
    launch_tile<LargeTile, false>(args, num_blocks, stream);
  else if (num_pairs <= num_blocks * SmallTile::kPairs)
    launch_tile<SmallTile, true>(args, num_blocks, stream);
  else if (num_pairs <= num_blocks * MediumTile::kPairs)
    launch_tile<MediumTile, true>(args, num_blocks, stream);
  else
    launch_tile<LargeTile, true>(args, num_blocks, stream);
}

}  // namespace mixlane::align_gpu
