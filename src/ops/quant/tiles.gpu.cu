#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(QuantKernelArgs, bool);

// Rows of whole pairs of octets whose codes can be stored two octets at a time.
bool has_pairs(const QuantKernelArgs& args, bool square) {
  return args.input.aligned && args.num_cols % (square ? 128 : 16) == 0 && args.output.begins_at(16);
}

Kernel kernel_for(DType input, bool pairs) {
  constexpr int kWave = gpu::kHardwareWave;
  if (input == DType::f32) return pairs ? quant_tiles<DType::f32, kWave, 2> : quant_tiles<DType::f32, kWave, 1>;
  if (input == DType::bf16) return pairs ? quant_tiles<DType::bf16, kWave, 2> : quant_tiles<DType::bf16, kWave, 1>;
  return pairs ? quant_tiles<DType::f16, kWave, 2> : quant_tiles<DType::f16, kWave, 1>;
}

}  // namespace

void launch_tiles(const QuantKernelArgs& args, DType input, bool square, bool overlap, Stream stream) {
  const uint32_t tile_rows = square ? (args.num_rows + kTileRows - 1) / kTileRows : args.num_rows;
  const uint32_t row_octets = (args.num_cols + gpu::kOctet - 1) / gpu::kOctet;
  const uint32_t for_row = std::max(64u, ((row_octets + kTileHeld - 1) / kTileHeld + 31) / 32 * 32);
  gpu::launch(kernel_for(input, has_pairs(args, square)),
              {.variant = "quant.tiles",
               .num_blocks = tile_rows * (square ? args.by_tile_cols.divisor : 1),
               .num_threads = square ? kMaxTileThreads : std::min<uint32_t>(for_row, kMaxTileThreads),
               .overlaps_previous = overlap},
              stream, args, square);
}

}  // namespace mixlane::quant_gpu
