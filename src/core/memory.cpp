#include "core/memory.hpp"

#include <cstdlib>
#include <cstring>

#include "core/arena.hpp"
#include "core/error.hpp"

namespace mixlane {
namespace {

class HostMemory final : public DeviceMemory {
 public:
  void* allocate(int64_t bytes) override {
    const auto size = static_cast<size_t>(Arena::rounded(bytes));
    void* memory = std::aligned_alloc(Arena::kAlignment, size);
    if (!memory) fail(ErrorCode::out_of_memory, "no {} bytes of workspace; lower the number of tokens", size);
    return std::memset(memory, 0, size);
  }
  void release(void* memory) noexcept override { std::free(memory); }
};

}  // namespace

std::unique_ptr<DeviceMemory> open_memory(Device device) {
  if (device.type == DeviceType::cpu) return std::make_unique<HostMemory>();
  return open_gpu_memory(device);
}

}  // namespace mixlane
