// Launching route_tokens for a wave size: the smallest instantiation that holds the row.
#pragma once

#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/routing/kernel.cuh"
#include "ops/routing/launchers.hpp"

namespace mixlane::routing_gpu {

// kColumns: what the instantiations hold, ascending.
template <int kSize, int... kColumns>
void launch_tokens(const KernelArgs& args, const char* variant, int num_multiprocessors, bool overlap, Stream stream) {
  using Kernel = void (*)(KernelArgs, uint32_t);
  Kernel kernel = nullptr;
  ((kernel == nullptr && static_cast<uint32_t>(kColumns) >= args.num_columns
        ? static_cast<void>(kernel = args.chooses_by_score ? route_tokens<kSize, kColumns / kSize, true>
                                                           : route_tokens<kSize, kColumns / kSize, false>)
        : static_cast<void>(0)),
   ...);
  // One token per multiprocessor is quickest while there are enough of those.
  const auto multiprocessors = static_cast<uint32_t>(num_multiprocessors);
  uint32_t per_block = gpu::kHardwareWave / kSize;
  while (args.num_tokens > 2 * multiprocessors * per_block && per_block * 2 * kSize <= kMaxThreads) per_block *= 2;
  uint32_t scratch_bytes = sizeof(Scratch);
  if (args.num_groups > 1) scratch_bytes = std::max(scratch_bytes, (args.num_experts + 2 * args.num_groups) * 4);
  scratch_bytes = (scratch_bytes + 15) / 16 * 16;
  gpu::launch(kernel,
              {.variant = variant,
               .num_blocks = (args.num_tokens + per_block - 1) / per_block,
               .num_threads = per_block * kSize,
               .shared_bytes = static_cast<int64_t>(per_block) * scratch_bytes,
               .overlaps_previous = overlap},
              stream, args, scratch_bytes);
}

}  // namespace mixlane::routing_gpu
