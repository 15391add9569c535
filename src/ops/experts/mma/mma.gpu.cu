#include "gpu/launch.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/mma/kernel.cuh"

namespace mixlane::experts_gpu {

void launch_mma(const MmaArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  constexpr uint32_t kBlocksPerMultiprocessor = 4;
  gpu::launch(experts_mma,
              {.variant = "experts.mma",
               .num_blocks = static_cast<uint32_t>(num_multiprocessors) * kBlocksPerMultiprocessor,
               .num_threads = kMmaThreads,
               .overlaps_previous = overlap},
              stream, args);
}

}  // namespace mixlane::experts_gpu
