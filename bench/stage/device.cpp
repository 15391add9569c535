#include "stage/device.hpp"

#include "core/error.hpp"
#include "gpu/runtime.hpp"

namespace mixlane::bench {
namespace {

// 13000 -> "13.0", as both runtimes count.
std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

void require_gpu(Device device) {
  if (device.type != gpu::kDeviceType)
    fail(ErrorCode::unsupported, "--device {0}: this build is for {1}; use --device {1}, or --device cpu", name(device.type),
         name(gpu::kDeviceType));
  std::string why;
  const int count = gpu::num_devices(&why);
  if (count == 0) fail(ErrorCode::unsupported, "--device {}: {}; --device cpu measures without one", name(device.type), why);
  if (device.index >= count)
    fail(ErrorCode::invalid_argument, "--device {0}:{1}: this machine has {2}, {0}:0 to {0}:{3}", name(device.type),
         device.index, count, count - 1);
}

int num_gpus() { return gpu::num_devices(); }

void add_gpu_environment(Device device, std::map<std::string, std::string>& environment) {
  const gpu::DeviceProperties gpu = gpu::properties(device.index);
  environment["gpu"] = gpu.name;
  environment["gpu_index"] = std::to_string(device.index);
  environment["gpu_architecture"] = gpu.architecture;
  environment["gpu_multiprocessors"] = std::to_string(gpu.num_multiprocessors);
  environment["gpu_l2"] = fmt::format("{:.0f} MiB", static_cast<double>(gpu.l2_bytes) / (1 << 20));
  environment["gpu_memory"] = fmt::format("{:.1f} GiB", static_cast<double>(gpu.memory_bytes) / (1 << 30));
  environment["gpu_driver"] = version_text(gpu.driver_version);
  environment["gpu_runtime"] = version_text(gpu.runtime_version);
}

}  // namespace mixlane::bench
