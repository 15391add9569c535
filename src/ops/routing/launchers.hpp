// The launcher that the device file defines. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/routing.hpp"
#include "ops/routing/device_args.hpp"

namespace mixlane::routing_gpu {

KernelArgs make_args(const RoutingArgs& args);

// `overlap`: the kernel may start before its predecessor has ended and waits for it itself.
void launch_warp(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream);
// The same for usual routers only.
bool is_usual(const KernelArgs& args);
void launch_usual(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream);
// And for many tokens.
bool takes_many(const KernelArgs& args);
void launch_many(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream);

}  // namespace mixlane::routing_gpu
