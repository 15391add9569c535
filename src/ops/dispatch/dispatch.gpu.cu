#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(DispatchKernelArgs);

template <Payload kPayload>
Kernel kernel_of(Regime regime) {
  return regime == Regime::latency ? dispatch_latency<kPayload> : dispatch_throughput<kPayload>;
}

Kernel kernel_for(Regime regime, Payload payload) {
  switch (payload) {
    case Payload::copy: return kernel_of<Payload::copy>(regime);
    case Payload::quantize_1x128: return kernel_of<Payload::quantize_1x128>(regime);
    case Payload::quantize_row: return kernel_of<Payload::quantize_row>(regime);
  }
  return nullptr;
}

}  // namespace

void load_dispatch_kernels() {
  for (const Regime regime : {Regime::latency, Regime::throughput})
    for (const Payload payload : {Payload::copy, Payload::quantize_1x128, Payload::quantize_row})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(regime, payload)), kLatencyThreads, 0);
}

void launch_dispatch(const DispatchKernelArgs& args, Regime regime, Payload payload, const Budget& budget, Stream stream) {
  const Kernel kernel = kernel_for(regime, payload);
  const uint32_t num_threads = threads_for(args.num_packets, regime);
  const int64_t shared_bytes = payload == Payload::quantize_1x128 ? int64_t{8} * args.num_scales : 0;
  // After a dispatch without a combine all sending blocks wait for the peers' credits: they must run at once.
  const int resident =
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(num_threads), shared_bytes);
  const uint32_t most = std::clamp(budget.blocks(resident) - 1, 1u, kMaxSendBlocks);
  const uint32_t wanted = args.num_rows < most ? args.num_rows * kRowParts : most;
  gpu::launch(kernel,
              {.variant = regime == Regime::latency ? "dispatch.latency" : "dispatch.throughput",
               .num_blocks = std::clamp(wanted, 1u, most) + 1,
               .num_threads = num_threads,
               .shared_bytes = shared_bytes,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
