// Copies from global to shared memory that need no registers on their way, where the hardware can (sm_80 on).
#pragma once

#include "gpu/device.hpp"
#if !defined(MIXLANE_HIP)
#include "gpu/ptx/copy.cuh"
#endif

namespace mixlane::gpu {

// 16 aligned bytes by this thread; there when it has waited for its copies, for other threads behind a barrier after that.
__device__ inline void copy_to_shared(uint4* to, const void* from) {
#if defined(MIXLANE_HIP)
  *to = *static_cast<const uint4*>(from);
#else
  ptx::copy_packet(ptx::shared_address(to), from, true);
#endif
}

__device__ inline void wait_for_copies() {
#if !defined(MIXLANE_HIP)
  ptx::wait_copies();
#endif
}

}  // namespace mixlane::gpu
