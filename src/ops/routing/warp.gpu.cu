#include "ops/routing/launch.cuh"

namespace mixlane::routing_gpu {

void launch_warp(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  launch_tokens<gpu::kHardwareWave, 256, 384, 512, 1024, 2048>(args, "routing.warp", num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::routing_gpu
