// GPUs of one process that reach each other's memory.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::gpu {

// Whether kernels of `device` can read and write `peer`'s memory in place.
bool can_access_peer(Device device, Device peer);
// From here on they may. Does nothing if they already did; throws where they can't.
void enable_peer_access(Device device, Device peer);

}  // namespace mixlane::gpu
