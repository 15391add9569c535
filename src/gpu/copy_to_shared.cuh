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

// The same of bytes that nobody reads again: they leave the second-level cache first.
__device__ inline void copy_to_shared_once(void* to, const void* from) {
#if defined(MIXLANE_HIP)
  store_packet(to, load_streaming_packet(from));
#else
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, policy;\n"
      "}" ::"r"(ptx::shared_address(to)),
      "l"(from)
      : "memory");
#endif
}

// This thread's copies since the last call are a group; all of its groups but the newest kNewer are there.
__device__ inline void end_copy_group() {
#if !defined(MIXLANE_HIP)
  ptx::end_copy_group();
#endif
}
template <int kNewer>
__device__ void wait_for_copy_groups() {
#if !defined(MIXLANE_HIP)
  ptx::wait_copy_groups<kNewer>();
#endif
}

__device__ inline void wait_for_copies() {
#if !defined(MIXLANE_HIP)
  ptx::wait_copies();
#endif
}

}  // namespace mixlane::gpu
