#include "gpu/launch.hpp"
#include "ops/quant/dequant.cuh"
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
  const auto block_rows = static_cast<uint32_t>(kDequantWaves * dequant_rows(fp4));
  gpu::launch(fp4 ? kernel_for<true>(output) : kernel_for<false>(output),
              {.variant = "dequant.octets",
               .num_blocks = (args.num_rows + block_rows - 1) / block_rows * args.by_pieces.divisor,
               .num_threads = kDequantWaves * kDequantLanes,
               .overlaps_previous = overlap},
              stream, args);
}

}  // namespace mixlane::quant_gpu
