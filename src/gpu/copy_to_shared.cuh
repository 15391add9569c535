// Copies from global to shared memory that need no registers on their way, where the hardware can (sm_80 on).
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// 16 aligned bytes by this thread; there when it has waited for its copies, for other threads behind a barrier after that.
__device__ inline void copy_to_shared(uint4* to, const void* from) {
#if defined(MIXLANE_HIP)
  *to = *static_cast<const uint4*>(from);
#else
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from)
      : "memory");
#endif
}

__device__ inline void wait_for_copies() {
#if !defined(MIXLANE_HIP)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace mixlane::gpu
