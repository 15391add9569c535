// The routing kernel with a logical wave of 16: nothing in them may assume 32.
#pragma once

#include "ops/routing/device_args.hpp"

namespace mixlane::test {

inline constexpr int kMaxWave16Columns = 256;
void launch_warp_of_16(const routing_gpu::KernelArgs& args, Stream stream);

}  // namespace mixlane::test
