#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(DequantKernelArgs, uint32_t);

template <bool kFp4>
Kernel kernel_for(DType output) {
  if (output == DType::f32) return dequant_octets<DType::f32, kFp4>;
  return output == DType::bf16 ? dequant_octets<DType::bf16, kFp4> : dequant_octets<DType::f16, kFp4>;
}

}  // namespace

void launch_octets(const DequantKernelArgs& args, DType output, bool fp4, int num_multiprocessors, bool overlap,
                   Stream stream) {
  const uint32_t full = static_cast<uint32_t>(num_multiprocessors) * 2048 * kMaxHeld;
  const uint32_t held = args.num_rows >= full / args.by_runs.divisor ? kMaxHeld : 1;
  const uint32_t num_threads = (args.num_rows + held - 1) / held * args.by_runs.divisor;
  gpu::launch(fp4 ? kernel_for<true>(output) : kernel_for<false>(output),
              {.variant = "dequant.octets",
               .num_blocks = (num_threads + kGroupThreads - 1) / kGroupThreads,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args, held);
}

}  // namespace mixlane::quant_gpu
