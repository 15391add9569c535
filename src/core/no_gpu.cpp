// What a build without a GPU backend answers.
#include "core/error.hpp"
#include "core/memory.hpp"
#include "core/tuning.hpp"

namespace mixlane {

namespace {

[[noreturn]] void refuse(Device device) {
  fail(ErrorCode::unsupported, "this build has no {} backend; use a cpu device", name(device.type));
}

}  // namespace

std::unique_ptr<DeviceMemory> open_gpu_memory(Device device) { refuse(device); }
TunedMachine gpu_machine(Device device) { refuse(device); }

}  // namespace mixlane
