// dispatch.throughput of sm_90 for rows that go as they are: in each block one thread keeps the copy unit busy, so that a
// few multiprocessors fill the link. Rows go in slot order, a flag per block of rows: kernels may read them before the call
// is over.
#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/throughput/dispatch_bulk.cuh"

namespace mixlane::exchange_gpu {
namespace bulk_dispatch {
namespace {

constexpr uint32_t kReceiveThreads = 256;
// Shared memory for rows on their way: what keeps the copy unit busy, and what there is for large rows.
constexpr int64_t kUsualBytes = 144 * 1024, kMostBytes = 200 * 1024;
constexpr uint32_t kMinStages = 3;

__global__ void __launch_bounds__(kThreads, 1)
    dispatch_throughput_bulk(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args, uint32_t row_bytes, uint32_t num_stages,
                             bool receives) {
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ BulkShared shared;
  gpu::prefetch_args(args);
  if (receives) gpu::allow_next_kernel();
  gpu::wait_for_previous_kernel();
  // Not before: a receiving kernel reads the state without waiting for this one.
  if (!receives) gpu::allow_next_kernel();
  const uint32_t num_tokens = num_tokens_of(args);
  if (receives && blockIdx.x + 1 == gridDim.x) {
    const uint32_t num_senders = gridDim.x - 1;
    const uint32_t num_sending = RowBlocks(num_tokens, num_senders, false).num_sending(num_senders);
    receive_rows(args, num_tokens, shared.checked, [&](const Call& call) {
      const Window& window = args.exchange.window;
      const int rank = static_cast<int>(threadIdx.x);
      if (rank < window.num_ranks && call.sends_to(rank))
        gpu::store_relaxed_system(
            done_flags(window, rank, window.rank) + num_sending,
            uint64_t{call.epoch} << 32 | min(shared.checked.needed[rank], static_cast<uint32_t>(window.capacity)));
    });
    return;
  }
  if (args.num_tokens && blockIdx.x + 1 == gridDim.x) report_num_tokens(args);
  BulkSender(args, num_tokens, rows, row_bytes, num_stages, receives, shared).run();
}

// Where kernels may read rows before the call is over: one block, behind the one above and what the caller put between. It
// waits for the others' rows and closes the call. It may begin while this rank still sends, but a rank that is late with its
// credit must be found before those that wait for it too.
__global__ void __launch_bounds__(kReceiveThreads)
    dispatch_throughput_receive(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  __shared__ ReceiveShared shared;
  gpu::prefetch_args(args);
  gpu::allow_next_kernel();
  const Exchange& exchange = args.exchange;
  Call call = open_call<ExchangeStage::dispatch>(exchange);
  if (call.needs_credits) {
    gpu::wait_for_previous_kernel();
    call = open_call<ExchangeStage::dispatch>(exchange);
  }
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < kMaxRanks) shared.received[rank] = 0;
  if (rank == 0) shared.late = shared.in_lines = shared.with_inbox = 0;
  __syncthreads();
  wait_for_all(exchange, call, shared);
  gpu::wait_for_previous_kernel();
  __syncthreads();
  if (shared.in_lines != 0) unpack_all(exchange, call, shared);
  const int32_t sent = rank < exchange.window.num_ranks ? exchange.routing.sent_count[rank] : 0;
  close_dispatch(exchange, call, static_cast<uint32_t>(sent), num_tokens_of(args), shared);
}

// What shared memory holds of a row: the record without what pads it to whole lines.
uint32_t row_bytes_of(const DispatchKernelArgs& args) {
  return (args.payload_bytes + 4 * (args.num_scale_words + 2 * args.num_topk) + 15) / 16 * 16;
}

}  // namespace
}  // namespace bulk_dispatch

using namespace bulk_dispatch;

bool takes_bulk(const DispatchKernelArgs& args) { return kMostBytes / stage_bytes(row_bytes_of(args)) >= kMinStages; }

void load_bulk_kernel() {
  gpu::max_resident_blocks(reinterpret_cast<const void*>(dispatch_throughput_bulk), kThreads, kMostBytes);
  gpu::max_resident_blocks(reinterpret_cast<const void*>(dispatch_throughput_receive), kReceiveThreads, 0);
}

void launch_dispatch_bulk(const DispatchKernelArgs& args, bool receives, const Budget& budget, Stream stream) {
  const uint32_t row_bytes = row_bytes_of(args), each = stage_bytes(row_bytes);
  const auto num_stages = static_cast<uint32_t>(std::clamp<int64_t>(kUsualBytes / each, kMinStages, kMaxStages));
  // The block that waits has a multiprocessor of its own, beside those of a limit.
  const uint32_t aside = receives && !budget.limited ? 1 : 0;
  const uint32_t most = std::max(static_cast<uint32_t>(budget.num_multiprocessors) - aside, 1u);
  gpu::launch(dispatch_throughput_bulk,
              {.variant = "dispatch.throughput",
               .num_blocks = std::clamp(args.num_rows, 1u, most) + (receives ? 1 : 0),
               .num_threads = kThreads,
               .shared_bytes = int64_t{num_stages} * each,
               .overlaps_previous = budget.overlaps},
              stream, args, row_bytes, num_stages, receives);
}

void launch_dispatch_bulk_receive(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  gpu::launch(dispatch_throughput_receive,
              {.variant = "dispatch.throughput", .num_threads = kReceiveThreads, .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
