// The routing kernel with logical waves of 16, which nothing in it may mistake for the hardware's, and of 8, as many tokens
// at once get them.
#pragma once

#include "ops/routing/device_args.hpp"

namespace mixlane::test {

inline constexpr int kMaxSmallWaveColumns = 256;
inline constexpr int kMaxWave8Topk = 8;
void launch_warp_of_16(const routing_gpu::KernelArgs& args, Stream stream);
// Without a hash table.
void launch_warp_of_8(const routing_gpu::KernelArgs& args, Stream stream);

}  // namespace mixlane::test
