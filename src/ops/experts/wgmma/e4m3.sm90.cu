#include "ops/experts/wgmma/launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_e4m3(const WgmmaLaunch& args, bool channels, int num_multiprocessors, Stream stream) {
  if (channels)
    launch_wgmma<Operands::e4m3_channel>(args, num_multiprocessors, stream);
  else
    launch_wgmma<Operands::e4m3_block>(args, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
