#include "ops/experts/wgmma_launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_bf16(const WgmmaArgs& args, Product product, int num_multiprocessors, Stream stream) {
  if (product == Product::gate_up)
    launch_wgmma<Product::gate_up, Operands::bf16>(args, num_multiprocessors, stream);
  else
    launch_wgmma<Product::down, Operands::bf16>(args, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
