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
  const uint32_t num_octets = args.num_rows * args.by_tile_cols.divisor * (fp4 ? 4 : 16);
  // Several octets per thread once that leaves every multiprocessor full.
  const uint32_t most = input == DType::f32 ? kMaxHeld<DType::f32> : kMaxHeld<DType::bf16>;
  const uint32_t held = num_octets >= static_cast<uint32_t>(num_multiprocessors) * 2048 * most ? most : 1;
  const uint32_t per_block = kGroupThreads * held;
  gpu::launch(kernel_for(input, fp4),
              {.variant = "quant.groups",
               .num_blocks = (num_octets + per_block - 1) / per_block,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args, held);
}

}  // namespace mixlane::quant_gpu
