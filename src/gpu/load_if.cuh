// A load that a condition leaves out without a branch.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// The 16 bytes at `from` if `wanted`, else `otherwise`. In code without branches the compiler tells the loads on
// their way apart; across branches whoever waits for one of them waits for all.
__device__ inline uint4 load_if(bool wanted, const void* from, const uint4& otherwise) {
  uint4 words = otherwise;
#if defined(MIXLANE_HIP)
  if (wanted) words = *static_cast<const uint4*>(from);
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)
      : "l"(from), "r"(static_cast<uint32_t>(wanted))
      : "memory");
#endif
  return words;
}

// The same of a word that is read once.
__device__ inline uint32_t load_streaming_if(bool wanted, const uint32_t* from, uint32_t otherwise) {
#if defined(MIXLANE_HIP)
  return wanted ? load_streaming(from) : otherwise;
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %2, 0;\n"
      "@wanted ld.global.cs.u32 %0, [%1];\n"
      "}"
      : "+r"(otherwise)
      : "l"(from), "r"(static_cast<uint32_t>(wanted))
      : "memory");
  return otherwise;
#endif
}

// Waits for a value that is on its way, here and for nothing else that is.
__device__ inline void wait_for_value([[maybe_unused]] uint32_t value) {
#if !defined(MIXLANE_HIP)
  constexpr uint32_t kUnlikely = 0x9e3779b9;
  asm volatile(
      "{\n"
      ".reg .pred found;\n"
      "setp.eq.u32 found, %0, %1;\n"
      "@found nanosleep.u32 1;\n"
      "}" ::"r"(value),
      "n"(kUnlikely)
      : "memory");
#endif
}

}  // namespace mixlane::gpu
