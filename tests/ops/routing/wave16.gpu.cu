#include "wave16.hpp"

#include "ops/routing/launch.cuh"

namespace mixlane::test {

void launch_warp_of_16(const routing_gpu::KernelArgs& args, Stream stream) {
  routing_gpu::launch_tokens<16, routing_gpu::SelectPacked, kMaxWave16Columns>(args, "warp of 16", 4, false, stream);
}

void launch_threshold_of_16(const routing_gpu::KernelArgs& args, Stream stream) {
  routing_gpu::launch_tokens<16, routing_gpu::SelectAboveBound, kMaxWave16Columns>(args, "threshold of 16", 4, false, stream);
}

}  // namespace mixlane::test
