#include "ops/routing/launch.cuh"
#include "wave16.hpp"

namespace mixlane::test {

void launch_warp_of_16(const routing_gpu::KernelArgs& args, Stream stream) {
  routing_gpu::launch_tokens<16, kMaxSmallWaveColumns>(args, "warp of 16", 4, false, stream);
}

void launch_warp_of_8(const routing_gpu::KernelArgs& args, Stream stream) {
  routing_gpu::launch_tokens<8, kMaxSmallWaveColumns>(args, "warp of 8", 4, false, stream);
}

}  // namespace mixlane::test
