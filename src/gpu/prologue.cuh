// What a kernel does ahead of the wait for its predecessor (gpu/device.hpp).
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// Has this address of global memory computed here. Compilers move a computation behind the wait otherwise, where it takes
// time.
template <class T>
__device__ void compute_now([[maybe_unused]] T*& address) {
#if !defined(MIXLANE_HIP)
  // A test and an offset that no compiler can prove to be of no use; no address has these bits.
  uint64_t bits = __cvta_generic_to_global(address);
  asm volatile(
      "{\n"
      ".reg .pred rare;\n"
      "setp.eq.u64 rare, %0, 0x9e3779b97f4a7c15;\n"
      "@rare nanosleep.u32 1;\n"
      "@rare add.u64 %0, %0, 1;\n"
      "}"
      : "+l"(bits));
  address = static_cast<T*>(__cvta_global_to_generic(bits));
#endif
}

}  // namespace mixlane::gpu
