// What both variants of bulk copies have in common: rings of stages in shared memory, and flags behind rows.
#pragma once

#include <cstdint>

#include "gpu/ptx/bulk_copy.cuh"

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

// Between the thread that stores rows by bulk copies and the wave that flags them, in shared memory. What is flagged, each
// with its stores, is counted from 0.
//
// That a bulk store is complete says that it has left, not that a peer who reads will find it. A flag needs a fence before
// it, and that waits for whatever the multiprocessor's waves and copies have on the link, and holds up what comes behind:
// half a microsecond each. So flags that can wait go together.
struct Arrivals {
  uint32_t num_arrived;  // whose stores are known to be complete
  uint32_t num_flagged;
  uint32_t together;  // flagged at once, if so many come
  bool all_arrived;

  __device__ void clear(uint32_t flagged_together) {
    num_arrived = num_flagged = 0;
    together = flagged_together;
    all_arrived = false;
  }
  // Until at most `most` of `number` have not been flagged; more than may wait together.
  __device__ void wait_for_flags(uint32_t number, uint32_t most) const {
    while (number - *static_cast<const volatile uint32_t*>(&num_flagged) > most) {
    }
  }
  // The storing thread: the stores of so many are complete, all but those of the kNewer latest groups of stores.
  template <int kNewer>
  __device__ void say(uint32_t number) {
    gpu::ptx::wait_for_stores<kNewer>();
    __threadfence_block();
    *static_cast<volatile uint32_t*>(&num_arrived) = number;
  }
  // And nothing comes behind them.
  __device__ void say_last(uint32_t number) {
    say<0>(number);
    __threadfence_block();
    *static_cast<volatile bool*>(&all_arrived) = true;
  }
  // A whole wave: flag(first, end) for those that have arrived, until all have.
  template <class Flag>
  __device__ void flag_all(Flag&& flag) {
    using Lanes = gpu::Wave<gpu::kHardwareWave>;
    uint32_t flagged = 0;
    bool all = false;
    do {
      uint32_t arrived = 0, enough = 0;
      do {
        enough = *static_cast<volatile uint32_t*>(&together);
        all = *static_cast<volatile bool*>(&all_arrived);
        __threadfence_block();
        arrived = *static_cast<volatile uint32_t*>(&num_arrived);
        all = Lanes::shuffle(static_cast<int>(all), 0) != 0;
        enough = Lanes::shuffle(enough, 0);
        arrived = Lanes::shuffle(arrived, 0);
      } while (arrived - flagged < enough && !all);
      gpu::ptx::fence_async_proxy();
      __threadfence_system();
      flag(flagged, arrived);
      flagged = arrived;
      Lanes::sync();
      *static_cast<volatile uint32_t*>(&num_flagged) = flagged;
    } while (!all);
  }
};

}  // namespace mixlane::exchange_gpu
