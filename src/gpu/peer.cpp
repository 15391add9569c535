#include "gpu/peer.hpp"

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {

bool can_access_peer(Device device, Device peer) {
  int can = 0;
  check(MIXLANE_GPU_API(DeviceCanAccessPeer)(&can, device.index, peer.index), "DeviceCanAccessPeer",
        fmt::format("asking whether device {} reaches device {}", device.index, peer.index));
  return can != 0;
}

void enable_peer_access(Device device, Device peer) {
  const DeviceGuard guard(device);
  const ApiError error = MIXLANE_GPU_API(DeviceEnablePeerAccess)(peer.index, 0);
  if (error == MIXLANE_GPU_API(ErrorPeerAccessAlreadyEnabled)) {
    static_cast<void>(MIXLANE_GPU_API(GetLastError)());
    return;
  }
  check(error, "DeviceEnablePeerAccess", fmt::format("letting device {} reach device {}", device.index, peer.index));
}

}  // namespace mixlane::gpu
