// combine.latency: one launch. The first blocks send this rank's partial sums to the rows' owners, into their inboxes or
// with a flag per row behind them; the others wait for the partial sums of this rank's tokens, row by row, and add them up.
#pragma once

#include "ops/dispatch/latency/combine_add.cuh"

namespace mixlane::exchange_gpu {

template <CombineWire kWire, PartialSource kSource, bool kInbox>
__global__ void __launch_bounds__((kMostThreads<kSource, kInbox>), kWire == CombineWire::f64 ? 1 : 2)
    combine_latency(const MIXLANE_GRID_CONSTANT CombineKernelArgs args) {
  __shared__ CombineShared shared;
  begin_launch(args);
  if (blockIdx.x < args.num_send_blocks)
    send_partials<kWire, kSource, kInbox>(args, shared);
  else
    add_up<kWire, kSource, kInbox>(args, shared);
}

// The same where only the device knows how many tokens count: by the inbox if they are few.
template <PartialSource kSource>
__global__ void __launch_bounds__(kMaxThreads, 2)
    combine_latency_by_count(const MIXLANE_GRID_CONSTANT CombineKernelArgs args) {
  constexpr CombineWire kWire = CombineWire::bf16;
  __shared__ CombineShared shared;
  begin_launch(args);
  const bool sends = blockIdx.x < args.num_send_blocks;
  if (*args.exchange.routing.num_tokens <= args.exchange.window.inbox_rows) {
    if (sends)
      send_partials<kWire, kSource, true>(args, shared);
    else
      add_up<kWire, kSource, true>(args, shared);
  } else if (sends) {
    send_partials<kWire, kSource, false>(args, shared);
  } else {
    add_up<kWire, kSource, false>(args, shared);
  }
}

}  // namespace mixlane::exchange_gpu
