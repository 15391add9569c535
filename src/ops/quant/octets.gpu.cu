#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(DequantKernelArgs);

template <bool kFp4>
Kernel kernel_for(DType output) {
  if (output == DType::f32) return dequant_octets<DType::f32, kFp4>;
  return output == DType::bf16 ? dequant_octets<DType::bf16, kFp4> : dequant_octets<DType::f16, kFp4>;
}

}  // namespace

void launch_octets(const DequantKernelArgs& args, DType output, bool fp4, bool overlap, Stream stream) {
  const uint32_t num_threads = (args.num_rows + kDequantRows - 1) / kDequantRows * args.by_runs.divisor;
  gpu::launch(fp4 ? kernel_for<true>(output) : kernel_for<false>(output),
              {.variant = "dequant.octets",
               .num_blocks = (num_threads + kGroupThreads - 1) / kGroupThreads,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args);
}

}  // namespace mixlane::quant_gpu
