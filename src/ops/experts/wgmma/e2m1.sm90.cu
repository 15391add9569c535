#include "ops/experts/wgmma/launch.cuh"
#include "ops/experts/wgmma/packed_wide.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_e2m1(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  launch_wgmma<Operands::e2m1>(args, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
