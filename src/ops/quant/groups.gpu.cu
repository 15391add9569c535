#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(QuantKernelArgs, uint32_t);

template <DType kType>
Kernel kernel_for(bool fp4) {
  return fp4 ? quantize_groups<E2m1Scale, kType, 4> : quantize_groups<E4m3Scale, kType, 16>;
}

Kernel kernel_for(DType input, bool fp4) {
  if (input == DType::f32) return kernel_for<DType::f32>(fp4);
  return input == DType::bf16 ? kernel_for<DType::bf16>(fp4) : kernel_for<DType::f16>(fp4);
}

}  // namespace

void launch_groups(const QuantKernelArgs& args, DType input, bool fp4, int num_multiprocessors, bool overlap,
                   Stream stream) {
  const uint32_t row_octets = args.by_tile_cols.divisor * (fp4 ? 4 : 16);
  // Several rows per thread once that leaves every multiprocessor full.
  const uint32_t full = static_cast<uint32_t>(num_multiprocessors) * 2048 * kMaxHeld;
  const uint32_t held = args.num_rows >= full / row_octets ? kMaxHeld : 1;
  const uint32_t num_threads = (args.num_rows + held - 1) / held * row_octets;
  gpu::launch(kernel_for(input, fp4),
              {.variant = "quant.groups",
               .num_blocks = (num_threads + kGroupThreads - 1) / kGroupThreads,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args, held);
}

}  // namespace mixlane::quant_gpu
