#include "gpu/launch.hpp"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(DispatchKernelArgs);

template <bool kOneRow>
Kernel kernel_for(Payload payload) {
  switch (payload) {
    case Payload::copy: return dispatch_latency<Payload::copy, kOneRow>;
    case Payload::quantize_1x128: return dispatch_latency<Payload::quantize_1x128, kOneRow>;
    case Payload::quantize_1x32: return dispatch_latency<Payload::quantize_1x32, kOneRow>;
    case Payload::quantize_row: return dispatch_latency<Payload::quantize_row, kOneRow>;
  }
  return nullptr;
}

// Rows whose scales a block puts together between barriers; memory for twice as many.
uint32_t scale_rows_for(uint32_t num_words) {
  constexpr uint32_t kMostRows = 8, kMostBytes = 16 * 1024;
  uint32_t rows = kMostRows;
  while (rows > 1 && 8 * rows * num_words > kMostBytes) rows /= 2;
  return rows;
}

}  // namespace

void load_dispatch_kernels() {
  for (const Payload payload : {Payload::copy, Payload::quantize_1x128, Payload::quantize_row, Payload::quantize_1x32})
    for (const Kernel kernel : {kernel_for<true>(payload), kernel_for<false>(payload)})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), kMaxThreads, 0);
}

void launch_dispatch(DispatchKernelArgs args, Payload payload, const Budget& budget, Stream stream) {
  // One block per multiprocessor: they fill the link, and after a dispatch without a combine, when all of them wait for the
  // peers' credits, they run at once.
  const uint32_t most = std::clamp(static_cast<uint32_t>(budget.num_multiprocessors) - 1, 1u, kMaxSendBlocks);
  const uint32_t wanted = std::clamp(args.num_rows < most ? args.num_rows * kRowParts : most, 1u, most);
  // A part of a row takes fewer threads: what they do before the first store is most of a small call.
  const uint32_t packets = args.num_packets >> Share::parts_for(args.num_rows, wanted);
  const uint32_t num_threads = packets < args.num_packets ? small_block(packets / kHeld) : threads_for(args.num_packets);
  const bool one_row = args.num_rows <= std::min(most, num_threads);
  args.scale_rows = one_row ? 1 : scale_rows_for(args.num_scale_words);
  gpu::launch(one_row ? kernel_for<true>(payload) : kernel_for<false>(payload),
              {.variant = "dispatch.latency",
               .num_blocks = wanted + 1,
               .num_threads = num_threads,
               .shared_bytes = makes_scale_rows(payload) ? int64_t{8} * args.scale_rows * args.num_scale_words : 0,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
