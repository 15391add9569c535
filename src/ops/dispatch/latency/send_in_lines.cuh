// A block that sends one row, or a part of it, in lines: calls of so few tokens that a wave has a lane for each.
#pragma once

#include "ops/dispatch/latency/lines.cuh"
#include "ops/dispatch/latency/send_rows.cuh"

namespace mixlane::exchange_gpu {

// Where a row is put together, and the own rank's record of it if there is one.
struct StagedTargets {
  std::byte* staged;
  std::byte* own;
  template <class Visit>
  __device__ void each(Visit&& visit) const {
    visit(staged);
    if (own != nullptr) visit(own);
  }
};

// The row is put together in shared memory, at `staged`, and goes to its receivers from there. Every wave finds its slots
// for itself. All threads of the block.
static_assert(kLineRows <= static_cast<int>(kWave));
template <class Sender>
__device__ void send_in_lines(const DispatchKernelArgs& args, const Share& share, Sender& sender, std::byte* staged,
                              SendShared& shared) {
  const Window& window = args.exchange.window;
  const uint32_t token = share.begin, lane = HardwareWave::lane();
  const int rank = static_cast<int>(lane);
  // Quantised rows are not cut into parts.
  const uint32_t first_pair = share.first_of(window.line_pairs), end_pair = share.end_of(window.line_pairs);
  if constexpr (Sender::kCopies) sender.cover(first_pair * kPacketsOfPair, end_pair * kPacketsOfPair);
  begin_sending(args);
  const FetchedToken fetched(args, lane, lane < share.end);
  const CallWords words = fetch_call(args.exchange);
  sender.fetch_first();
  const uint32_t plain_ranks = fetched.plain_ranks(args);
  Call call = open_call<ExchangeStage::dispatch>(words);
  const HardwareWave::Mask having = tokens_by_rank(args, fetched.ranks(args, plain_ranks));
  sender.fetch_first_tail();
  const auto slot = static_cast<uint32_t>(HardwareWave::count(having & ((HardwareWave::Mask{1} << token) - 1)));
  const bool wanted = (having >> token & 1u) != 0;
  if (call.needs_credits) call.masked = exchange_credits(args.exchange, call.number, call.masked, &shared.masked);
  const auto capacity = static_cast<uint32_t>(window.capacity);
  // The last token's block knows how many rows each peer gets.
  if (blockIdx.x + 1 == max(share.num_active, 1u) && HardwareWave::index_in_block() + 1 == blockDim.x / kWave &&
      rank < window.num_ranks && rank != window.rank && call.sends_to(rank))
    send_header(args, call, kInLines | (share.empty() ? 0 : min(slot + (wanted ? 1 : 0), capacity)), rank);
  if (share.empty()) {
    count_reader(args.exchange, call);
    return;
  }
  be_late(args.exchange, call.number);
  const bool sent = wanted && slot < capacity && call.sends_to(rank);
  const auto to = reinterpret_cast<unsigned long long>(
      !sent                 ? nullptr
      : rank == window.rank ? record_at(window, rank, rank, static_cast<int>(slot))
                            : reinterpret_cast<std::byte*>(lines_of(window, rank, window.rank, slot)));
  sender.send_one(StagedTargets{staged, reinterpret_cast<std::byte*>(HardwareWave::shuffle(to, window.rank))});
  if (HardwareWave::index_in_block() == 0 && share.part == 0 && rank < window.num_ranks)
    args.exchange.routing.slots[int64_t{token} * window.num_ranks + rank] = sent ? static_cast<int32_t>(slot) : -1;
  be_late(args.exchange, ~call.number);
  count_reader(args.exchange, call);  // a barrier as well: the row is complete
#pragma unroll 1
  for (int i = 1; i < window.num_ranks; ++i) {
    const int r = window.rank + i < window.num_ranks ? window.rank + i : window.rank + i - window.num_ranks;
    auto* const lines = reinterpret_cast<gpu::Packet*>(HardwareWave::shuffle(to, r));
    if (lines != nullptr) store_lines(lines, staged, first_pair, end_pair, call.epoch);
  }
}

}  // namespace mixlane::exchange_gpu
