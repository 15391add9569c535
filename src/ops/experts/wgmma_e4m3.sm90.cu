#include "ops/experts/wgmma_launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_e4m3(const WgmmaArgs& args, Product product, bool channels, int num_multiprocessors, Stream stream) {
  if (channels)
    launch_wgmma<Operands::e4m3_channel>(args, product, num_multiprocessors, stream);
  else
    launch_wgmma<Operands::e4m3_block>(args, product, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
