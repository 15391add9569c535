#include "ops/experts/wgmma/launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_bf16(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  launch_wgmma<Operands::bf16>(args, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
