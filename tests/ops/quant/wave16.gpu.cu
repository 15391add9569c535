#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "wave16.hpp"

namespace mixlane::test {

void launch_tiles_of_16(const quant_gpu::QuantKernelArgs& args, uint32_t num_blocks, bool square, Stream stream) {
  gpu::launch(quant_gpu::quant_tiles<DType::bf16, 16, 1>,
              {.variant = "tiles of 16", .num_blocks = num_blocks, .num_threads = 128}, stream, args, square);
}

}  // namespace mixlane::test
