#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

using ClusterTile = Tile<1024, 8, 32>;
constexpr uint32_t kMaxBlocks = 16;
// Up to here 8 blocks, which every device can place, do with one or two items per thread.
constexpr uint32_t kPairsForMaxBlocks = 8 * 1024 * 2;

}  // namespace

int max_cluster_pairs() { return kMaxBlocks * ClusterTile::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  const auto kernel = plain ? align_cluster<ClusterTile, true> : align_cluster<ClusterTile, false>;
  const uint32_t num_blocks = args.source.num_pairs > kPairsForMaxBlocks ? kMaxBlocks : 8;
  gpu::launch(kernel,
              {.variant = "align.cluster",
               .num_blocks = num_blocks,
               .num_threads = ClusterTile::kThreads,
               .shared_bytes = ClusterTile::shared_bytes(args.num_codes) + num_quads(args.num_codes) * 8,
               .cluster_blocks = num_blocks,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace mixlane::align_gpu
