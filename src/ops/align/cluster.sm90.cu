#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/cluster.cuh"
#include "ops/align/launchers.hpp"

namespace mixlane::align_gpu {
namespace {

constexpr uint32_t kMostCodes = 1028;

// A thread holds four codes. Half of a large GPU takes the stores, so that the next call, whose blocks come early, finds
// room.
template <int kThreads, int kItems, uint32_t kBlocks, uint32_t kMaxCodes>
using Fitting = ClusterShape<kThreads, kItems, kBlocks, (kBlocks * kThreads * kItems <= 1024 ? 32 : 64) / kBlocks,
                             std::min<uint32_t>(kMaxCodes, 4 * kThreads)>;

using LargestShape = Fitting<1024, 8, 16, kMostCodes>;

// False if one cluster doesn't hold the pairs, or the codes.
template <class Shape, bool kPlain>
bool try_shape(const KernelArgs& args, Stream stream) {
  if (args.source.num_pairs > Shape::kPairs || args.num_codes > Shape::kMaxCodes) return false;
  using Tile = typename Shape::Tile;
  gpu::launch(align_cluster<Shape, kPlain>,
              {.variant = "align.cluster",
               .num_blocks = Shape::kBlocks * Shape::kClusters,
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(Shape::kMaxCodes) + Shape::kTileBytes + ClusterCounts<Shape>::kBytes,
               .cluster_blocks = Shape::kBlocks,
               .overlaps_previous = true},
              stream, args);
  return true;
}

// The first that holds the pairs is the quickest: few blocks exchange their counts soon, and few waves of few items have
// little to do before and after.
template <uint32_t kMaxCodes>
void launch_plain(const KernelArgs& args, Stream stream) {
  constexpr uint32_t kC = kMaxCodes;
  if (try_shape<Fitting<256, 1, 4, kC>, true>(args, stream) || try_shape<Fitting<256, 1, 8, kC>, true>(args, stream) ||
      try_shape<Fitting<256, 2, 8, kC>, true>(args, stream) || try_shape<Fitting<512, 2, 8, kC>, true>(args, stream) ||
      try_shape<Fitting<512, 4, 8, kC>, true>(args, stream) || try_shape<Fitting<512, 4, 16, kC>, true>(args, stream) ||
      try_shape<Fitting<512, 8, 16, kC>, true>(args, stream))
    return;
  try_shape<Fitting<1024, 8, 16, kC>, true>(args, stream);
}

// Ids of other kinds are rarer, and what their reading takes hides the rest: fewer shapes.
template <uint32_t kMaxCodes>
void launch_other(const KernelArgs& args, Stream stream) {
  constexpr uint32_t kC = kMaxCodes;
  if (try_shape<Fitting<256, 1, 8, kC>, false>(args, stream) || try_shape<Fitting<512, 1, 16, kC>, false>(args, stream) ||
      try_shape<Fitting<512, 2, 16, kC>, false>(args, stream) || try_shape<Fitting<512, 4, 16, kC>, false>(args, stream) ||
      try_shape<Fitting<1024, 4, 16, kC>, false>(args, stream))
    return;
  try_shape<Fitting<1024, 8, 16, kC>, false>(args, stream);
}

}  // namespace

int max_cluster_pairs() { return LargestShape::kPairs; }
bool has_cluster(Device device) { return gpu::compute_capability(device.index) == 90; }

void launch_cluster(const KernelArgs& args, bool plain, Stream stream) {
  constexpr uint32_t kFew = 256;
  constexpr uint32_t kMore = 512;
  if (!plain)
    args.num_codes <= kFew ? launch_other<kFew>(args, stream) : launch_other<kMostCodes>(args, stream);
  else if (args.num_codes <= kFew)
    launch_plain<kFew>(args, stream);
  else if (args.num_codes <= kMore)
    launch_plain<kMore>(args, stream);
  else
    launch_plain<kMostCodes>(args, stream);
}

}  // namespace mixlane::align_gpu
