// The counterpart of load_streaming_packet (gpu/device.hpp).
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// Written once, read by nobody soon: does not displace what others reuse. To 16 aligned bytes.
__device__ inline void store_streaming_packet(void* to, const Packet& packet) {
#if defined(MIXLANE_HIP)
  using Vector = uint32_t __attribute__((ext_vector_type(4)));
  const Vector vector = {packet.words[0], packet.words[1], packet.words[2], packet.words[3]};
  __builtin_nontemporal_store(vector, static_cast<Vector*>(to));
#else
  __stcs(static_cast<uint4*>(to), make_uint4(packet.words[0], packet.words[1], packet.words[2], packet.words[3]));
#endif
}

}  // namespace mixlane::gpu
