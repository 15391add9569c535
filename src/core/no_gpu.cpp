// What a build without a GPU backend answers.
#include "core/error.hpp"
#include "core/memory.hpp"

namespace mixlane {

std::unique_ptr<DeviceMemory> open_gpu_memory(Device device) {
  fail(ErrorCode::unsupported, "this build has no {} backend; use a cpu device", name(device.type));
}

}  // namespace mixlane
