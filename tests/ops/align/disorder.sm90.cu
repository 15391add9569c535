#include "disorder.cuh"
#include "disorder.hpp"
#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"

namespace mixlane::test {
namespace {

using namespace align_gpu;

template <int kItems>
struct DisorderedShape : ClusterShape<64, kItems, 2, 2, 256> {
  using Tile = DisorderedTile<64, kItems>;
};

template <class Shape>
void launch_shape(const KernelArgs& args, Stream stream) {
  gpu::launch(
      align_cluster<Shape, true>,
      {.variant = "disordered cluster",
       .num_blocks = Shape::kBlocks * Shape::kClusters,
       .num_threads = Shape::Tile::kThreads,
       .shared_bytes = Shape::Tile::shared_bytes(Shape::kMaxCodes) + Shape::kTileBytes + ClusterCounts<Shape>::kBytes,
       .cluster_blocks = Shape::kBlocks},
      stream, args);
}

}  // namespace

// 256 pairs without a sorted tile in shared memory, 1024 with one.
void launch_disordered_cluster(const KernelArgs& args, Stream stream) {
  if (args.source.num_pairs <= DisorderedShape<2>::kPairs)
    launch_shape<DisorderedShape<2>>(args, stream);
  else
    launch_shape<DisorderedShape<8>>(args, stream);
}

}  // namespace mixlane::test
