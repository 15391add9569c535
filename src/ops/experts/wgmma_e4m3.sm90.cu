#include "ops/experts/wgmma_launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_e4m3(const WgmmaArgs& args, Product product, bool channels, int num_multiprocessors, Stream stream) {
  const auto launch = [&]<Operands kOperands>() {
    if (product == Product::gate_up)
      launch_wgmma<Product::gate_up, kOperands>(args, num_multiprocessors, stream);
    else
      launch_wgmma<Product::down, kOperands>(args, num_multiprocessors, stream);
  };
  if (channels)
    launch.operator()<Operands::e4m3_channel>();
  else
    launch.operator()<Operands::e4m3_block>();
}

}  // namespace mixlane::experts_gpu
