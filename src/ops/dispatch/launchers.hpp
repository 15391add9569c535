// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/dispatch.hpp"
#include "ops/dispatch/device_args.hpp"

namespace mixlane::exchange_gpu {

// How many blocks of a device this rank may use.
struct Budget {
  int num_multiprocessors = 1;  // that this rank may count on: others may play a rank on the same GPU
};

// Loads the kernels. The runtime may otherwise do it at their first launch and wait for running kernels then, which may
// be waiting for this rank's.
void load_dispatch_kernels();
void load_combine_kernels(CombineWire wire);

void launch_dispatch_latency(const DispatchKernelArgs& args, Payload payload, const Budget& budget, Stream stream);
void launch_combine_latency(CombineKernelArgs args, CombineWire wire, const Budget& budget, Stream stream);

}  // namespace mixlane::exchange_gpu
