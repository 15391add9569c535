// dispatch.latency: one launch. All blocks but the last send the rows of their tokens and leave; the last one waits.
#pragma once

#include "ops/dispatch/gpu/geometry.hpp"
#include "ops/dispatch/gpu/receive_rows.cuh"
#include "ops/dispatch/latency/send_in_lines.cuh"
#include "ops/dispatch/latency/send_one_row.cuh"

namespace mixlane::exchange_gpu {

// 16-byte packets of a row that a thread has on their way at once.
inline constexpr uint32_t kHeldOfRow = 4, kHeldOfLines = 2;
// Of blocks that send rows without lines: so few that one has a row on its way, since all waves run the same instructions
// for each row. Two blocks fit on a multiprocessor, with 128 registers a thread: nothing of what is on its way is spilled.
inline constexpr uint32_t kMaxRowThreads = 256;

__device__ inline uint32_t num_tokens_of(const DispatchKernelArgs& args) {
  if (!args.num_tokens) return args.num_rows;
  return static_cast<uint32_t>(min(max(*args.num_tokens, 0), static_cast<int32_t>(args.num_rows)));
}

union DispatchShared {
  SendShared send;
  ReceiveShared receive;
};

// What the kernels of dispatch have in common: `send(share)` waits for the kernel before, opens the call and moves a block's
// rows.
template <class Send>
__device__ void dispatch_rows(const DispatchKernelArgs& args, DispatchShared& shared, bool whole_rows, Send&& send) {
  gpu::prefetch_args(args);
  if (args.num_tokens != nullptr) gpu::wait_for_previous_kernel();  // which may have made the number
  const uint32_t num_tokens = num_tokens_of(args), num_senders = gridDim.x - 1 - args.num_receivers;
  if (blockIdx.x < num_senders) {
    send(Share::of(num_tokens, num_senders, blockIdx.x, whole_rows));
    return;
  }
  wait_for_turn();
  if (blockIdx.x + 1 < gridDim.x) {
    receive_lines(args, blockIdx.x - num_senders);
  } else {
    receive_rows(args, num_tokens, shared.receive);
  }
}

enum class RowsOfBlock {
  one,  // at most
  any,
  by_count,  // one if the number of tokens, which only the device knows, is so low
};

template <Payload kPayload, RowsOfBlock kRows>
__global__ void __launch_bounds__(kMaxRowThreads, 2) dispatch_latency(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  extern __shared__ float scales[];
  __shared__ DispatchShared shared;
  dispatch_rows(args, shared, args.whole_rows, [&](const Share& share) {
    RowSender<kPayload, kHeldOfRow> sender(args, share, scales, shared.send);
    bool one_row = kRows == RowsOfBlock::one;
    if constexpr (kRows == RowsOfBlock::by_count) {
      const uint32_t num_senders = gridDim.x - 1, num_threads = blockDim.x, num_tokens = num_tokens_of(args);
      one_row = num_tokens <= num_senders && num_tokens <= num_threads;
    }
    if (one_row)
      send_one_row(args, share, sender, shared.send);
    else
      send_share(args, share, sender, shared.send);
  });
}

// Few tokens, in lines.
template <Payload kPayload>
__global__ void __launch_bounds__(kMaxSharingThreads, 2)
    dispatch_latency_lines(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  extern __shared__ uint4 row[];
  __shared__ DispatchShared shared;
  dispatch_rows(args, shared, kPayload != Payload::copy || args.num_scale_words != 0, [&](const Share& share) {
    auto* const scales = reinterpret_cast<float*>(row + args.exchange.window.line_pairs * kPacketsOfPair);
    RowSender<kPayload, kHeldOfLines> sender(args, share, scales, shared.send);
    send_in_lines(args, share, sender, reinterpret_cast<std::byte*>(row), shared.send);
  });
}

}  // namespace mixlane::exchange_gpu
