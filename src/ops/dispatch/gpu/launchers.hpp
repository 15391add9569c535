// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include <algorithm>

#include "mixlane/dispatch.hpp"
#include "ops/dispatch/gpu/device_args.hpp"

namespace mixlane::exchange_gpu {

// What this rank may use of its GPU.
struct Budget {
  bool has_bulk_copies = false;  // sm_90
  bool overlaps = false;         // kernels may start before their predecessors have ended
  bool limited = false;          // by the caller, who wants the rest of the GPU for other work
  int num_multiprocessors = 1;   // that this rank may count on: others may play a rank on the same GPU
};

// Loads the kernels. The runtime may otherwise do it at their first launch and wait for running kernels then, which may
// be waiting for this rank's.
void load_dispatch_kernels();
void load_combine_kernels(CombineWire wire);

void launch_dispatch(DispatchKernelArgs args, Payload payload, const Budget& budget, Stream stream);
// dispatch.throughput by bulk copies, for rows of which three fit in shared memory.
bool takes_bulk(const DispatchKernelArgs& args);
void load_bulk_kernel();
// `receives`: there is no launch_dispatch_bulk_receive.
void launch_dispatch_bulk(const DispatchKernelArgs& args, bool receives, const Budget& budget, Stream stream);
void launch_dispatch_bulk_receive(const DispatchKernelArgs& args, const Budget& budget, Stream stream);
void launch_combine(CombineKernelArgs args, CombineWire wire, const Budget& budget, Stream stream);
// combine.throughput by bulk copies, for reduced rows of the wire's type of which three fit in shared memory.
bool takes_bulk(const CombineKernelArgs& args, CombineWire wire);
void load_combine_bulk_kernel(CombineWire wire);
void launch_combine_bulk(const CombineKernelArgs& args, CombineWire wire, const Budget& budget, Stream stream);

}  // namespace mixlane::exchange_gpu
