// dispatch.latency: one launch. All blocks but the last send the rows of their tokens and leave; the last one waits.
#pragma once

#include "ops/dispatch/receive_rows.cuh"
#include "ops/dispatch/send_one_row.cuh"

namespace mixlane::exchange_gpu {

__device__ inline uint32_t num_tokens_of(const DispatchKernelArgs& args) {
  if (!args.num_tokens) return args.num_rows;
  return static_cast<uint32_t>(min(max(*args.num_tokens, 0), static_cast<int32_t>(args.num_rows)));
}

union DispatchShared {
  SendShared send;
  ReceiveShared receive;
};

// What the kernels of dispatch have in common: `send(call, share)` moves a block's rows.
template <class Send>
__device__ void dispatch_rows(const DispatchKernelArgs& args, DispatchShared& shared, Send&& send) {
  begin_launch(args);
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const uint32_t num_tokens = num_tokens_of(args);
  if (blockIdx.x + 1 == gridDim.x) {
    receive_rows(args, call, num_tokens, shared.receive);
    return;
  }
  send(call, Share::of(num_tokens, gridDim.x - 1, blockIdx.x));
}

// kOneRow: no block has more than one row.
template <Payload kPayload, bool kOneRow>
__global__ void __launch_bounds__(kMaxThreads, kOneRow ? 1 : 2)
    dispatch_latency(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  extern __shared__ float scales[];
  __shared__ DispatchShared shared;
  dispatch_rows(args, shared, [&](const Call& call, const Share& share) {
    RowSender<kPayload> sender(args, share, scales, shared.send);
    if constexpr (kOneRow)
      send_one_row(args, call, share, sender, shared.send);
    else
      send_share(args, call, share, sender, shared.send);
  });
}

}  // namespace mixlane::exchange_gpu
