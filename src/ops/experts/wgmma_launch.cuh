// Launch geometry of experts.wgmma.
#pragma once

#include "gpu/launch.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/wgmma.cuh"

namespace mixlane::experts_gpu {

template <Operands kOperands>
void launch_wgmma(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  const uint32_t num_pairs = static_cast<uint32_t>(num_multiprocessors) / kClusterBlocks;
  gpu::launch(args.gated ? experts_wgmma<Product::gate_up, kOperands> : experts_wgmma<Product::up, kOperands>,
              {.variant = "experts.wgmma",
               .num_blocks = num_pairs * kClusterBlocks,
               .num_threads = kNumThreads,
               .shared_bytes = kSharedBytes,
               .cluster_blocks = kClusterBlocks,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace mixlane::experts_gpu
