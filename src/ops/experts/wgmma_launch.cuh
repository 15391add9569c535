// Launch geometry of experts.wgmma.
#pragma once

#include "gpu/launch.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/wgmma.cuh"

namespace mixlane::experts_gpu {

template <Product kProduct, Operands kOperands>
void launch_wgmma_kernel(const WgmmaArgs& args, int num_multiprocessors, Stream stream) {
  const uint32_t num_pairs = static_cast<uint32_t>(num_multiprocessors) / kClusterBlocks;
  gpu::launch(experts_wgmma<kProduct, kOperands>,
              {.variant = "experts.wgmma",
               .num_blocks = num_pairs * kClusterBlocks,
               .num_threads = kNumThreads,
               .shared_bytes = kSharedBytes,
               .cluster_blocks = kClusterBlocks,
               .overlaps_previous = true},
              stream, args);
}

template <Operands kOperands>
void launch_wgmma(const WgmmaArgs& args, Product product, int num_multiprocessors, Stream stream) {
  switch (product) {
    case Product::gate_up: return launch_wgmma_kernel<Product::gate_up, kOperands>(args, num_multiprocessors, stream);
    case Product::up: return launch_wgmma_kernel<Product::up, kOperands>(args, num_multiprocessors, stream);
    case Product::down: return launch_wgmma_kernel<Product::down, kOperands>(args, num_multiprocessors, stream);
  }
}

}  // namespace mixlane::experts_gpu
