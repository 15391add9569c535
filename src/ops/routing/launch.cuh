// Launching routing_warp for a wave size: the smallest instantiation that holds the row.
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
  uint32_t wave_bytes = 0;
  const auto choose_if_it_fits = [&]<int kMax>() {
    constexpr int kValues = kMax / kSize;
    if (kernel || kMax < args.num_columns) return;
    wave_bytes = WaveMemory<kSize, kValues>::kValueBytes;
    if (args.chooses_by_score)
      kernel = routing_warp<kSize, kValues, Order::score>;
    else
      kernel = routing_warp<kSize, kValues, Order::logit>;
    if constexpr (kSize >= 16) {
      if (args.hash_table) kernel = routing_warp<kSize, kValues, Order::table>;
    }
  };
  (choose_if_it_fits.template operator()<kColumns>(), ...);
  // One token per multiprocessor is quickest while there are enough of those.
  const auto multiprocessors = static_cast<uint32_t>(num_multiprocessors);
  uint32_t per_block = gpu::kHardwareWave / kSize;
  while (args.num_tokens > 2 * multiprocessors * per_block && per_block * 2 * kSize <= kMaxThreads) per_block *= 2;
  uint32_t scratch_bytes = sizeof(Scratch);
  if (args.num_groups > 1) scratch_bytes = std::max(scratch_bytes, group_scratch_bytes<kSize>(args));
  wave_bytes += (scratch_bytes + 15) / 16 * 16;
  gpu::launch(kernel,
              {.variant = variant,
               .num_blocks = (args.num_tokens + per_block - 1) / per_block,
               .num_threads = per_block * kSize,
               .shared_bytes = static_cast<int64_t>(per_block) * wave_bytes,
               .overlaps_previous = overlap},
              stream, args, wave_bytes);
}

}  // namespace mixlane::routing_gpu
