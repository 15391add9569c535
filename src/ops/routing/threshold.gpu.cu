#include "ops/routing/launch.cuh"

namespace mixlane::routing_gpu {

void launch_threshold(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  launch_tokens<gpu::kHardwareWave, SelectAboveBound, 256, 512, 1024, kMaxThresholdColumns>(
      args, "routing.threshold", num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::routing_gpu
