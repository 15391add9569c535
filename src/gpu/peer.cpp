#include "gpu/peer.hpp"

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {

std::string connect_peer(Device from, Device to) {
  if (from.index == to.index) return "";
  const DeviceGuard guard(from);
  int possible = 0;
  check(MIXLANE_GPU_API(DeviceCanAccessPeer)(&possible, from.index, to.index), "DeviceCanAccessPeer",
        fmt::format("asking whether device {} reaches device {}", from.index, to.index));
  if (!possible) return fmt::format("device {} can't reach the memory of device {}", from.index, to.index);
  const ApiError error = MIXLANE_GPU_API(DeviceEnablePeerAccess)(to.index, 0);
  if (error == MIXLANE_GPU_API(ErrorPeerAccessAlreadyEnabled)) {
    static_cast<void>(MIXLANE_GPU_API(GetLastError)());
    return "";
  }
  check(error, "DeviceEnablePeerAccess", fmt::format("letting device {} reach device {}", from.index, to.index));
  return "";
}

}  // namespace mixlane::gpu
