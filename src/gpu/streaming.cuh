// Reading many bytes once: copies into shared memory that threads start and wait for later (where there are none, they are
// done at once) and that leave the caches to others, and loads that many of are under way.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// 16 aligned bytes to shared memory; they do not stay in the second-level cache.
__device__ inline void start_streaming_copy(void* shared, const void* global) {
#if defined(MIXLANE_HIP)
  store_packet(shared, load_streaming_packet(global));
#else
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, policy;\n"
      "}" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#endif
}

// This thread's copies since the last call are a group.
__device__ inline void end_started_copies() {
#if !defined(MIXLANE_HIP)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// All of this thread's groups but the newest kNewer have landed: for this thread, and after a barrier for others.
template <int kNewer>
__device__ void wait_for_copies() {
#if !defined(MIXLANE_HIP)
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewer) : "memory");
#endif
}

// A half of a word, widened by the load: an instruction of its own for that could come early, and would wait.
__device__ inline uint32_t load_half(const uint16_t* from) {
#if defined(MIXLANE_HIP)
  return *from;
#else
  uint32_t word;
  asm volatile("ld.global.u16 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
#endif
}

}  // namespace mixlane::gpu
