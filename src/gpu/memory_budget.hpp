// How much of a device's memory is free.
#pragma once

#include <cstdint>

namespace mixlane::gpu {

struct MemoryBudget {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// Of all processes together, at this moment.
MemoryBudget memory_budget(int index);

}  // namespace mixlane::gpu
