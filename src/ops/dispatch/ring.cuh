// Where a wave is in a ring of stages in shared memory.
#pragma once

#include <cstdint>

namespace mixlane::exchange_gpu {

// A stage of a ring and how often it has come round.
struct Turn {
  uint32_t stage = 0;
  uint32_t round = 0;
  __device__ void next(uint32_t num_stages) {
    if (++stage < num_stages) return;
    stage = 0;
    ++round;
  }
};

}  // namespace mixlane::exchange_gpu
