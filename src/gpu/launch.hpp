// Launching kernels with checked errors and the attributes that <<<>>> can't express. Included by .gpu.cu files.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gpu/runtime.hpp"

namespace mixlane::gpu {

struct LaunchShape {
  const char* variant = "";  // the id, for messages
  uint32_t num_blocks = 1;
  uint32_t num_threads = 1;
  int64_t shared_bytes = 0;
  uint32_t cluster_blocks = 1;     // sm_90 on
  bool cooperative = false;        // all blocks run at once, or the launch fails
  bool overlaps_previous = false;  // PDL: starts before its predecessor has ended; the kernel waits for it itself
};

void launch_raw(const void* kernel, const LaunchShape& shape, void** args, Stream stream);
// Blocks of one multiprocessor that fit at once.
int max_resident_blocks(const void* kernel, int num_threads, int64_t shared_bytes);

// Launches kernel(args...); the arguments must have exactly the kernel's parameter types.
template <class... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape, Stream stream,
            const std::type_identity_t<Params>&... args) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  launch_raw(reinterpret_cast<const void*>(kernel), shape, pointers, stream);
}

}  // namespace mixlane::gpu
