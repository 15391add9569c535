// Words that ranks on different GPUs hand to each other.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// What the writing thread, and by a block barrier before it its whole block, wrote is visible to whom sees this word.
#if defined(MIXLANE_HIP)
__device__ inline void store_release_system(uint64_t* to, uint64_t value) {
  __hip_atomic_store(to, value, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_SYSTEM);
}
__device__ inline void store_relaxed_system(uint64_t* to, uint64_t value) {
  __hip_atomic_store(to, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
}
__device__ inline uint64_t load_acquire_system(const uint64_t* from) {
  return __hip_atomic_load(from, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_SYSTEM);
}
__device__ inline uint64_t load_relaxed_system(const uint64_t* from) {
  return __hip_atomic_load(from, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
}
// In words of eight bytes: nobody may rely on seeing all or nothing.
__device__ inline void store_packet_system(Packet* to, const Packet& packet) {
  const uint64_t low = packet.words[0] | uint64_t{packet.words[1]} << 32;
  const uint64_t high = packet.words[2] | uint64_t{packet.words[3]} << 32;
  store_relaxed_system(reinterpret_cast<uint64_t*>(to), low);
  store_relaxed_system(reinterpret_cast<uint64_t*>(to) + 1, high);
}
__device__ inline Packet load_packet_system(const Packet* from) {
  const auto* const words = reinterpret_cast<const uint64_t*>(from);
  const uint64_t low = __hip_atomic_load(words, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
  const uint64_t high = __hip_atomic_load(words + 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
  return {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
           static_cast<uint32_t>(high >> 32)}};
}
#else
__device__ inline void store_release_system(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void store_relaxed_system(uint64_t* to, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline uint64_t load_acquire_system(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline uint64_t load_relaxed_system(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
// In one piece: who sees a word of it sees all.
__device__ inline void store_packet_system(Packet* to, const Packet& packet) {
  const uint64_t low = packet.words[0] | uint64_t{packet.words[1]} << 32;
  const uint64_t high = packet.words[2] | uint64_t{packet.words[3]} << 32;
  asm volatile(
      "{\n"
      ".reg .b128 packet;\n"
      "mov.b128 packet, {%1, %2};\n"
      "st.relaxed.sys.global.b128 [%0], packet;\n"
      "}" ::"l"(to),
      "l"(low), "l"(high)
      : "memory");
}
__device__ inline Packet load_packet_system(const Packet* from) {
  uint64_t low, high;
  asm volatile(
      "{\n"
      ".reg .b128 packet;\n"
      "ld.relaxed.sys.global.b128 packet, [%2];\n"
      "mov.b128 {%0, %1}, packet;\n"
      "}"
      : "=l"(low), "=l"(high)
      : "l"(from)
      : "memory");
  return {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
           static_cast<uint32_t>(high >> 32)}};
}
#endif

}  // namespace mixlane::gpu
