// Launch geometry that the exchange kernels share.
#pragma once

#include <algorithm>

#include "ops/dispatch/gpu/device_args.hpp"

namespace mixlane::exchange_gpu {

// Of blocks that leave a multiprocessor room for another one, with 72 registers each.
inline constexpr uint32_t kMaxSharingThreads = 448;

// The block that wastes the fewest threads on a row of so many 16-byte pieces; of equal ones the largest. `others`: threads
// of it that have no part in that.
inline uint32_t threads_for(uint32_t num_pieces, uint32_t others = 0, uint32_t limit = kMaxThreads) {
  const uint32_t most = limit - (others > 0 ? 64 : 0);
  uint32_t best = most;
  uint32_t best_cost = ~0u;
  for (uint32_t threads = most; threads >= kMaxThreads / 2; threads -= 64) {
    const uint32_t cost = (num_pieces + threads - 1) / threads * threads;
    if (cost >= best_cost) continue;
    best = threads;
    best_cost = cost;
  }
  return best + others;
}

// One whose threads have a piece each.
inline uint32_t small_block(uint32_t num_pieces) { return std::clamp((num_pieces + 63) / 64 * 64, 128u, kMaxThreads); }

}  // namespace mixlane::exchange_gpu
