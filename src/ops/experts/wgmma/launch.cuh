// Launch geometry of experts.wgmma.
#pragma once

#include "gpu/launch.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/wgmma/kernel.cuh"

namespace mixlane::experts_gpu {

template <Operands kOperands, Runs kRuns>
void launch_kernel(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  const uint32_t num_pairs = static_cast<uint32_t>(num_multiprocessors) / kClusterBlocks;
  const auto gate_up = experts_wgmma<Product::gate_up, kOperands, kRuns>;
  // Who runs down alone does not care what was first.
  const auto up = experts_wgmma < kRuns == Runs::down ? Product::gate_up : Product::up, kOperands, kRuns > ;
  gpu::launch(args.gated ? gate_up : up,
              {.variant = "experts.wgmma",
               .num_blocks = num_pairs * kClusterBlocks,
               .num_threads = kNumThreads<kOperands>,
               .shared_bytes = kSharedBytes,
               .cluster_blocks = kClusterBlocks,
               .overlaps_previous = true},
              stream, args);
}

template <Operands kOperands>
void launch_wgmma(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  if constexpr (!is_packed(kOperands)) {
    launch_kernel<kOperands, Runs::both>(args, num_multiprocessors, stream);
  } else {
    // One for each product: `first` has slots, `down` the same.
    WgmmaLaunch one = args;
    one.down = WgmmaArgs{};
    if (args.runs_first) launch_kernel<kOperands, Runs::first>(one, num_multiprocessors, stream);
    one.down = args.down;
    one.first = WgmmaArgs{};
    one.first.slots = args.down.slots;
    if (args.runs_down) launch_kernel<kOperands, Runs::down>(one, num_multiprocessors, stream);
  }
}

}  // namespace mixlane::experts_gpu
