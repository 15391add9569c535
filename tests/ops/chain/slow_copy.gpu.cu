#include "gpu/device.hpp"
#include "gpu/launch.hpp"
#include "slow_copy.hpp"

namespace mixlane::test {
namespace {

constexpr uint32_t kThreads = 512;

// One block: all that could hold the next kernel back is the wait under test.
__global__ void __launch_bounds__(kThreads)
    slow_copy(std::byte* to, const std::byte* from, int64_t bytes, int64_t delay_ns) {
  gpu::allow_next_kernel();
  const uint64_t begin = gpu::clock_ns();
  while (gpu::clock_ns() - begin < static_cast<uint64_t>(delay_ns)) {
  }
  for (int64_t i = threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

}  // namespace

void launch_slow_copy(void* to, const void* from, int64_t bytes, int64_t delay_ns, Stream stream) {
  gpu::launch(slow_copy, {.variant = "slow copy", .num_threads = kThreads}, stream, static_cast<std::byte*>(to),
              static_cast<const std::byte*>(from), bytes, delay_ns);
}

}  // namespace mixlane::test
