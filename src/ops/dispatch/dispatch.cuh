// dispatch.latency: one launch. All blocks but the last send the rows of their tokens and leave; the last one waits.
#pragma once

#include "ops/dispatch/receive_rows.cuh"
#include "ops/dispatch/send_rows.cuh"

namespace mixlane::exchange_gpu {

__device__ inline uint32_t num_tokens_of(const DispatchKernelArgs& args) {
  if (!args.num_tokens) return args.num_rows;
  return static_cast<uint32_t>(min(max(*args.num_tokens, 0), static_cast<int32_t>(args.num_rows)));
}

// Before anything else.
__device__ inline void begin_launch(const DispatchKernelArgs& args) {
  gpu::prefetch_args(args);
  gpu::allow_next_kernel();
  gpu::wait_for_previous_kernel();
}

template <Payload kPayload>
__global__ void __launch_bounds__(kMaxThreads, 2) dispatch_latency(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  extern __shared__ float scales[];
  __shared__ union {
    SendShared send;
    ReceiveShared receive;
  } shared;
  begin_launch(args);
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const uint32_t num_tokens = num_tokens_of(args);
  if (blockIdx.x + 1 == gridDim.x) {
    receive_rows(args, call, num_tokens, shared.receive);
  } else {
    const Share share = Share::of(num_tokens, gridDim.x - 1, blockIdx.x);
    RowSender<kPayload> sender(args, share, scales, shared.send);
    send_share(args, call, share, sender, shared.send);
  }
}

}  // namespace mixlane::exchange_gpu
