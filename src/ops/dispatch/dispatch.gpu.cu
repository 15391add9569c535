#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(DispatchKernelArgs);

Kernel kernel_for(Payload payload) {
  switch (payload) {
    case Payload::copy: return dispatch_latency<Payload::copy>;
    case Payload::quantize_1x128: return dispatch_latency<Payload::quantize_1x128>;
    case Payload::quantize_row: return dispatch_latency<Payload::quantize_row>;
  }
  return nullptr;
}

}  // namespace

void load_dispatch_kernels() {
  for (const Payload payload : {Payload::copy, Payload::quantize_1x128, Payload::quantize_row})
    gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(payload)), kMaxThreads, 0);
}

void launch_dispatch_latency(const DispatchKernelArgs& args, Payload payload, const Budget& budget, Stream stream) {
  const Kernel kernel = kernel_for(payload);
  const uint32_t num_threads = threads_for(args.num_packets);
  const int64_t shared_bytes = payload == Payload::quantize_1x128 ? int64_t{8} * args.num_scales : 0;
  // After a dispatch without a combine all sending blocks wait for the peers' credits: they must run at once.
  const int resident =
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(num_threads), shared_bytes);
  const auto room = static_cast<uint32_t>(std::max(budget.num_multiprocessors * std::max(resident, 1) - 1, 1));
  const uint32_t most =
      std::min({room, kMaxSendBlocks, static_cast<uint32_t>(budget.num_multiprocessors * kBlocksPerMultiprocessor)});
  const uint32_t wanted = args.num_rows < most ? args.num_rows * kRowParts : most;
  gpu::launch(kernel,
              {.variant = "dispatch.latency",
               .num_blocks = std::clamp(wanted, 1u, most) + 1,
               .num_threads = num_threads,
               .shared_bytes = shared_bytes},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
