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

void launch_dispatch(const DispatchKernelArgs& args, Payload payload, const Budget& budget, Stream stream) {
  // One block per multiprocessor: they fill the link, and after a dispatch without a combine, when all of them wait for the
  // peers' credits, they run at once.
  const uint32_t most = std::clamp(static_cast<uint32_t>(budget.num_multiprocessors) - 1, 1u, kMaxSendBlocks);
  const uint32_t wanted = args.num_rows < most ? args.num_rows * kRowParts : most;
  gpu::launch(kernel_for(payload),
              {.variant = "dispatch.latency",
               .num_blocks = std::clamp(wanted, 1u, most) + 1,
               .num_threads = threads_for(args.num_packets),
               .shared_bytes = payload == Payload::quantize_1x128 ? int64_t{8} * args.num_scales : 0,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
