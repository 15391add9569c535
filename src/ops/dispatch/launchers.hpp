// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include <algorithm>

#include "mixlane/dispatch.hpp"
#include "ops/dispatch/device_args.hpp"

namespace mixlane::exchange_gpu {

enum class Regime : uint8_t { latency, throughput };

// What this rank may use of its GPU.
struct Budget {
  bool overlaps = false;        // kernels may start before their predecessors have ended
  int num_multiprocessors = 1;  // others may play a rank on the same GPU, or the caller wants some for other work

  // Of which `resident` fit on a multiprocessor; several hide each other's waiting.
  uint32_t blocks(int resident) const {
    return static_cast<uint32_t>(num_multiprocessors * std::clamp(resident, 1, kDispatchBlocks));
  }
  uint32_t combine_blocks(int resident) const {
    return static_cast<uint32_t>(num_multiprocessors * std::clamp(resident, 1, kCombineBlocks));
  }
  static constexpr int kDispatchBlocks = 1;
  static constexpr int kCombineBlocks = 2;
};

// Loads the kernels. The runtime may otherwise do it at their first launch and wait for running kernels then, which may
// be waiting for this rank's.
void load_dispatch_kernels();
void load_combine_kernels(CombineWire wire);

void launch_dispatch(const DispatchKernelArgs& args, Regime regime, Payload payload, const Budget& budget, Stream stream);
void launch_combine(CombineKernelArgs args, Regime regime, CombineWire wire, const Budget& budget, Stream stream);

}  // namespace mixlane::exchange_gpu
