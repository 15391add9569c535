// quant.tiles with a logical wave of 16: nothing in it may assume 32.
#pragma once

#include "mixlane/core.hpp"
#include "ops/quant/device_args.hpp"

namespace mixlane::test {

// bf16 input.
void launch_tiles_of_16(const quant_gpu::QuantKernelArgs& args, uint32_t num_blocks, bool square, Stream stream);

}  // namespace mixlane::test
