// Loads that order what comes behind them.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu::ptx {

// Sixteen bytes that other GPUs write: what they had written before is visible to the loading thread.
__device__ inline Packet load_acquire_packet_system(const void* from) {
  Packet packet;
  asm volatile("ld.acquire.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(packet.words[0]), "=r"(packet.words[1]), "=r"(packet.words[2]), "=r"(packet.words[3])
               : "l"(from)
               : "memory");
  return packet;
}

}  // namespace mixlane::gpu::ptx
