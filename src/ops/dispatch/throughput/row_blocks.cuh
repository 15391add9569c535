// dispatch.throughput: how the tokens of a call are divided, and how those before a token are counted.
#pragma once

#include "ops/dispatch/gpu/receive_rows.cuh"

namespace mixlane::exchange_gpu::bulk_dispatch {

// Tokens of a block of rows, at most, and how many blocks there are for each sending block of the grid if there are tokens
// for them. Multiprocessors have different shares of the link and must end together, so blocks are few tokens; those with a
// flag of their own, for whom stores must be known to have arrived, more.
constexpr uint32_t kTokensOfBlock = 8;
constexpr uint32_t kBlocksEach = 16, kFlaggedBlocksEach = 4;

// The call's tokens in blocks that are taken by whoever is free, first rows first. If rows may be read early each of them
// has a flag; else a sending block of the grid has one, and one more says how many rows there are.
struct RowBlocks {
  uint32_t size;  // tokens
  uint32_t count;
  uint32_t num_tokens;

  __device__ RowBlocks(uint32_t tokens, uint32_t num_senders, bool flagged) : num_tokens(tokens) {
    const auto parts = [](uint32_t total, uint32_t each) { return (total + each - 1) / each; };
    size = max(min(tokens / num_senders / (flagged ? kFlaggedBlocksEach : kBlocksEach), kTokensOfBlock), 1u);
    if (flagged) size = max(size, parts(tokens, kMaxSendBlocks));
    count = parts(tokens, size);
  }
  // Blocks of the grid that send any.
  __device__ uint32_t num_sending(uint32_t num_senders) const { return min(count, num_senders); }
  __device__ uint32_t begin(uint32_t block) const { return block * size; }
  __device__ uint32_t end(uint32_t block) const { return min((block + 1) * size, num_tokens); }
};

// What comes now is code of its own, not in the way of what a block executes first: fetching it takes longer than running
// it.

// Lane r: how many of the tokens go to rank r, those of [first, end) that the wave looks at: 32 of them every `step`. Ids of
// eight of a lane's are on their way at once: fetched one after the other, those of 4096 tokens take as long as their rows.
static __device__ __noinline__ uint32_t count_plain(const uint4* ids, uint32_t num_experts, gpu::Divider each, int num_ranks,
                                                    uint32_t first, uint32_t end, uint32_t step) {
  constexpr uint32_t kTogether = 8;
  uint32_t result = 0;
#pragma unroll 1
  for (; first < end; first += kTogether * step) {
    PlainIds fetched[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      if (const uint32_t token = first + i * step + HardwareWave::lane(); token < end)
        fetched[i] = {ids[int64_t{token} * 2], ids[int64_t{token} * 2 + 1]};
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      if (first + i * step >= end) break;
      const bool here = first + i * step + HardwareWave::lane() < end;
      result += count_by_rank(here ? ranks_of(num_experts, each, fetched[i]) : 0, num_ranks);
    }
  }
  return result;
}
static __device__ __noinline__ uint32_t count_any(const DispatchKernelArgs& args, uint32_t first, uint32_t end,
                                                  uint32_t step) {
  uint32_t result = 0;
#pragma unroll 1
  for (; first < end; first += step) {
    const uint32_t token = first + HardwareWave::lane();
    result += count_by_rank(token < end ? ranks_of(args, token) : 0, args.exchange.window.num_ranks);
  }
  return result;
}

// A wave of the last block, if no block of this grid receives: what is wrong with the ids, and how many rows go where.
static __device__ __noinline__ void check_tokens(const DispatchKernelArgs& args, uint32_t masked, uint32_t num_tokens,
                                                 ReceiveShared& found) {
  const Exchange& exchange = args.exchange;
  const uint32_t lane = HardwareWave::lane();
  if (lane == 0) {
    found.num_bad = 0;
    found.first_bad = ~0u;
    if (masked == ~0u) report_end(exchange);
  }
  HardwareWave::sync();
  uint32_t needed = 0;
#pragma unroll 4
  for (uint32_t first = 0; first < num_tokens; first += kWave) {
    const uint32_t token = first + lane, ranks = token < num_tokens ? ranks_of(args, token) : 0;
    if ((ranks & kBadId) != 0) count_bad_ids(args, token, found);
    needed += count_by_rank(ranks, exchange.window.num_ranks);
  }
  if (lane < kMaxRanks) found.needed[lane] = needed;
  HardwareWave::sync();
  const auto capacity = static_cast<uint32_t>(exchange.window.capacity);
  if (HardwareWave::ballot(lane < kMaxRanks && needed > capacity) != 0 || found.num_bad != 0)
    report_tokens(args, num_tokens, found);
  if (lane < static_cast<uint32_t>(exchange.window.num_ranks))
    exchange.routing.sent_count[lane] = (masked >> lane & 1u) == 0 ? static_cast<int32_t>(min(needed, capacity)) : 0;
}

}  // namespace mixlane::exchange_gpu::bulk_dispatch
