#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(QuantKernelArgs, bool);

Kernel kernel_for(DType input) {
  if (input == DType::f32) return quant_tiles<DType::f32, gpu::kHardwareWave>;
  if (input == DType::bf16) return quant_tiles<DType::bf16, gpu::kHardwareWave>;
  return quant_tiles<DType::f16, gpu::kHardwareWave>;
}

}  // namespace

void launch_tiles(const QuantKernelArgs& args, DType input, bool square, bool overlap, Stream stream) {
  const uint32_t tile_rows = square ? (args.num_rows + kTileRows - 1) / kTileRows : args.num_rows;
  const uint32_t row_octets = (args.num_cols + gpu::kOctet - 1) / gpu::kOctet;
  const uint32_t for_row = std::max(64u, ((row_octets + kTileHeld - 1) / kTileHeld + 31) / 32 * 32);
  gpu::launch(kernel_for(input),
              {.variant = "quant.tiles",
               .num_blocks = tile_rows * (square ? args.by_tile_cols.divisor : 1),
               .num_threads = square ? kMaxTileThreads : std::min<uint32_t>(for_row, kMaxTileThreads),
               .overlaps_previous = overlap},
              stream, args, square);
}

}  // namespace mixlane::quant_gpu
