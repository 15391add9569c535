#include "ops/experts/wgmma_launch.cuh"

namespace mixlane::experts_gpu {

void launch_wgmma_bf16(const WgmmaArgs& args, Product product, int num_multiprocessors, Stream stream) {
  launch_wgmma<Operands::bf16>(args, product, num_multiprocessors, stream);
}

}  // namespace mixlane::experts_gpu
