#pragma once
#include <cstdlib>

#include "gpu/launch.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/wgmma.cuh"

namespace mixlane::experts_gpu {

template <Product kProduct, Operands kOperands>
void launch_wgmma(const WgmmaArgs& args, int num_multiprocessors, Stream stream) {
  const uint32_t num_pairs = static_cast<uint32_t>(num_multiprocessors) / kClusterBlocks;
  gpu::launch(experts_wgmma<kProduct, kOperands>,
              {.variant = "experts.wgmma",
               .num_blocks = num_pairs * kClusterBlocks,
               .num_threads = kNumThreads,
               .shared_bytes = kSharedBytes,
               .cluster_blocks = kClusterBlocks,
               .overlaps_previous = !getenv("NOPDL")},
              stream, args);
}

}  // namespace mixlane::experts_gpu
