#include "gpu/peer.hpp"

#include <cstring>

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {
namespace {

// An export covers whole granules of device memory; nothing else may share the last one.
constexpr int64_t kGranule = int64_t{2} << 20;

int64_t whole_granules(int64_t bytes) { return (bytes + kGranule - 1) / kGranule * kGranule; }

using ApiHandle = MIXLANE_GPU_API(IpcMemHandle_t);

ApiError allocate_shared(void** memory, size_t bytes) {
#if defined(MIXLANE_HIP)
  // Coarse-grained memory shows peers' writes only between kernels.
  return hipExtMallocWithFlags(memory, bytes, hipDeviceMallocFinegrained);
#else
  return cudaMalloc(memory, bytes);
#endif
}

}  // namespace

std::string bus_id(int index) {
  char text[64] = {};
  check(MIXLANE_GPU_API(DeviceGetPCIBusId)(text, sizeof(text), index), "DeviceGetPCIBusId",
        fmt::format("asking where device {} is", index));
  return text;
}

std::string connect_peer(Device from, Device to) {
  if (from.index == to.index) return "";
  const DeviceGuard guard(from);
  int possible = 0;
  check(MIXLANE_GPU_API(DeviceCanAccessPeer)(&possible, from.index, to.index), "DeviceCanAccessPeer",
        fmt::format("asking whether device {} reaches device {}", from.index, to.index));
  if (!possible)
    return fmt::format(
        "GPU {} ({}) can't reach the memory of GPU {} ({}): neither NVLink nor PCIe peer access; see `nvidia-smi topo -p2p "
        "rw`",
        from.index, bus_id(from.index), to.index, bus_id(to.index));
  const ApiError error = MIXLANE_GPU_API(DeviceEnablePeerAccess)(to.index, 0);
#if defined(MIXLANE_HIP)
  const bool already = error == hipErrorPeerAccessAlreadyEnabled;
#else
  const bool already = error == cudaErrorPeerAccessAlreadyEnabled;
#endif
  if (already) static_cast<void>(MIXLANE_GPU_API(GetLastError)());
  if (!already)
    check(error, "DeviceEnablePeerAccess", fmt::format("opening GPU {}'s memory to GPU {}", to.index, from.index));
  return "";
}

SharedBuffer::SharedBuffer(Device device, int64_t bytes, std::string_view what) : device_(device) {
  const OwnedStream stream(device);  // checks the device as well
  const DeviceGuard guard(device);
  void* memory = nullptr;
  check(allocate_shared(&memory, static_cast<size_t>(whole_granules(bytes))), "Malloc",
        fmt::format("taking {} bytes of device {} for {}", bytes, device.index, what));
  data_ = static_cast<std::byte*>(memory);
  fill(memory, 0, bytes, stream.get());
  synchronize(stream.get());
}

SharedBuffer::~SharedBuffer() { static_cast<void>(MIXLANE_GPU_API(Free)(data_)); }

std::string SharedBuffer::handle() const {
  const DeviceGuard guard(device_);
  ApiHandle handle;
  check(MIXLANE_GPU_API(IpcGetMemHandle)(&handle, data_), "IpcGetMemHandle",
        fmt::format("sharing memory of device {} with other processes", device_.index));
  return {reinterpret_cast<const char*>(&handle), sizeof(handle)};
}

ImportedBuffer::ImportedBuffer(Device device, const std::string& handle) : device_(device) {
  ApiHandle raw;
  if (handle.size() != sizeof(raw))
    fail(ErrorCode::config_mismatch,
         "a peer sent a memory handle of {} bytes, this build's have {}; run one build on all ranks", handle.size(),
         sizeof(raw));
  std::memcpy(&raw, handle.data(), sizeof(raw));
  const DeviceGuard guard(device);
  void* memory = nullptr;
  check(MIXLANE_GPU_API(IpcOpenMemHandle)(&memory, raw, MIXLANE_GPU_API(IpcMemLazyEnablePeerAccess)), "IpcOpenMemHandle",
        fmt::format("mapping a peer process's memory on device {}", device.index), ErrorCode::unsupported);
  data_ = static_cast<std::byte*>(memory);
}

ImportedBuffer::~ImportedBuffer() { static_cast<void>(MIXLANE_GPU_API(IpcCloseMemHandle)(data_)); }

}  // namespace mixlane::gpu
