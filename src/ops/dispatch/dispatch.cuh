// dispatch.latency and dispatch.throughput: one launch. All blocks but the last send the rows of their tokens and leave; the
// last one waits.
#pragma once

#include "ops/dispatch/receive_rows.cuh"
#include "ops/dispatch/send_rows.cuh"

namespace mixlane::exchange_gpu {

__device__ inline uint32_t num_tokens_of(const DispatchKernelArgs& args) {
  if (!args.num_tokens) return args.num_rows;
  return static_cast<uint32_t>(min(max(*args.num_tokens, 0), static_cast<int32_t>(args.num_rows)));
}

static __device__ __noinline__ void report_num_tokens(const DispatchKernelArgs& args) {
  if (threadIdx.x != 0) return;
  const int32_t given = *args.num_tokens;
  if (given >= 0 && given <= static_cast<int32_t>(args.num_rows)) return;
  Status failure;
  failure.code = ErrorCode::invalid_argument;
  failure.rank = args.exchange.window.rank;
  failure.expected = args.num_rows;
  failure.got = given;
  report(args.exchange.status, failure);
}

// All threads of a launch whose last block waits.
template <Payload kPayload, uint32_t kHeld>
__device__ void dispatch_rows(const DispatchKernelArgs& args) {
  extern __shared__ float scales[];
  __shared__ union {
    SendShared send;
    ReceiveShared receive;
  } shared;
  gpu::prefetch_args(args);
  gpu::allow_next_kernel();
  gpu::wait_for_previous_kernel();
  const Exchange& exchange = args.exchange;
  const Call call = open_call<ExchangeStage::dispatch>(exchange);
  const uint32_t num_tokens = num_tokens_of(args);
  if (blockIdx.x + 1 == gridDim.x) {
    if (args.num_tokens) report_num_tokens(args);
    if (call.ended && threadIdx.x == 0) report_end(exchange);
    receive_rows(args, call, num_tokens, shared.receive);
  } else {
    send_share<kPayload, kHeld>(args, call, Share::of(num_tokens, gridDim.x - 1, blockIdx.x), scales, shared.send);
  }
}

template <Payload kPayload>
__global__ void __launch_bounds__(kLatencyThreads, 2) dispatch_latency(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  dispatch_rows<kPayload, 2>(args);
}

// A multiprocessor has one block, which keeps it busy alone: for many rows through few multiprocessors.
template <Payload kPayload>
__global__ void __launch_bounds__(kMaxThreads, 1) dispatch_throughput(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  dispatch_rows<kPayload, 4>(args);
}

}  // namespace mixlane::exchange_gpu
