// Where an arena's memory comes from: core knows the interface, a backend brings the implementation.
#pragma once

#include <memory>

#include "mixlane/core.hpp"

namespace mixlane {

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // `bytes` of zeros, aligned to 256; may be called while a graph is captured. Throws out_of_memory with the sizes.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
};

// Throws unsupported if this build or this machine has no such device.
std::unique_ptr<DeviceMemory> open_memory(Device device);

// Defined by src/gpu, or by core/no_gpu.cpp in a build without a GPU backend.
std::unique_ptr<DeviceMemory> open_gpu_memory(Device device);

}  // namespace mixlane
