#include "gpu/memory_budget.hpp"

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {

MemoryBudget memory_budget(int index) {
  const DeviceGuard guard({kDeviceType, index});
  size_t free = 0, total = 0;
  check(MIXLANE_GPU_API(MemGetInfo)(&free, &total), "MemGetInfo",
        fmt::format("asking for the free memory of device {}", index));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

}  // namespace mixlane::gpu
