// The clock of all measurements: CLOCK_MONOTONIC, the same for every process of one host.
#pragma once

#include <cstdint>
#include <ctime>

namespace mixlane::bench {

inline int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace mixlane::bench
