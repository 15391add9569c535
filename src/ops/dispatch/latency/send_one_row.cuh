// A block that has only one row, or a part of one: the shorter way for calls of few tokens.
#pragma once

#include "ops/dispatch/latency/send_rows.cuh"

namespace mixlane::exchange_gpu {

// A block with one row, or a part of one: it needs no batch. Every wave finds the row's slots for itself, from all tokens up
// to the block's if they fit in a wave; else each looks at some of them. All threads of the block.
template <class Sender>
__device__ void send_one_row(const DispatchKernelArgs& args, const Share& share, Sender& sender, SendShared& shared) {
  const Window& window = args.exchange.window;
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block();
  const int peer = static_cast<int>(lane);
  const uint32_t token = share.begin, chunk = token / kWave;
  const uint32_t looks_at = (chunk == 0 ? 0 : wave * kWave) + lane;
  begin_sending(args);
  const FetchedToken fetched(args, looks_at, !share.empty() && looks_at <= token);
  const CallWords words = fetch_call(args.exchange);
  sender.fetch_first();
  const uint32_t plain_ranks = fetched.plain_ranks(args);
  Call call = open_call<ExchangeStage::dispatch>(words);
  HardwareWave::Mask having = tokens_by_rank(args, fetched.ranks(args, plain_ranks));
  sender.fetch_first_tail();
  uint32_t slot = 0;
  if (chunk != 0) {
    if (wave <= chunk && lane < kMaxRanks) shared.having[wave][lane] = having;
    __syncthreads();
    for (uint32_t w = 0; w < chunk && lane < kMaxRanks; ++w)
      slot += static_cast<uint32_t>(HardwareWave::count(shared.having[w][lane]));
    having = lane < kMaxRanks ? shared.having[chunk][lane] : 0;
  }
  slot += static_cast<uint32_t>(HardwareWave::count(having & ((HardwareWave::Mask{1} << token % kWave) - 1)));
  const bool wanted = (having >> token % kWave & 1u) != 0;
  if (call.needs_credits) call.masked = exchange_credits(args.exchange, call.number, call.masked, &shared.masked);
  const bool talks = wave + 1 == blockDim.x / kWave && peer < window.num_ranks && peer != window.rank && call.sends_to(peer);
  const uint64_t stamp = uint64_t{call.epoch} << 32;
  if (blockIdx.x == 0 && talks) send_header(args, call, share.num_active, peer);
  if (share.empty()) {
    count_reader(args.exchange, call);
    return;
  }
  be_late(args.exchange, call.number);
  const auto capacity = static_cast<uint32_t>(window.capacity);
  const bool sent = wanted && slot < capacity && call.sends_to(peer);
  sender.send_one(LaneTargets{window, sent ? record_at(window, peer, window.rank, static_cast<int>(slot)) : nullptr});
  if (wave == 0 && share.part == 0 && peer < window.num_ranks)
    args.exchange.routing.slots[int64_t{token} * window.num_ranks + peer] = sent ? static_cast<int32_t>(slot) : -1;
  be_late(args.exchange, ~call.number);
  count_reader(args.exchange, call);  // a barrier as well
  if (talks)
    gpu::store_release_system(done_flags(window, peer, window.rank) + blockIdx.x,
                              stamp | min(slot + (wanted ? 1 : 0), capacity));
}

}  // namespace mixlane::exchange_gpu
