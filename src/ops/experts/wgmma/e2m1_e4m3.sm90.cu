#include "ops/experts/wgmma/launch.cuh"
#include "ops/experts/wgmma/packed_wide_e4m3.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_e2m1_e4m3(const WgmmaLaunch& args, int num_multiprocessors, Stream stream) {
  launch_wgmma<Operands::e2m1_e4m3>(args, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
