// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/quant.hpp"
#include "ops/quant/device_args.hpp"

namespace mixlane::quant_gpu {

QuantKernelArgs make_args(const QuantArgs& args);

// `overlap`: the kernel may start before its predecessor has ended and waits for it itself.
void launch_groups(const QuantKernelArgs& args, DType input, bool fp4, int num_multiprocessors, bool overlap, Stream stream);
// `square`: 128x128 tiles, else rows.
void launch_tiles(const QuantKernelArgs& args, DType input, bool square, bool overlap, Stream stream);
void launch_octets(const DequantKernelArgs& args, DType output, bool fp4, bool overlap, Stream stream);

}  // namespace mixlane::quant_gpu
