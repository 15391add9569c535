// What is left for kernels where copy engines move the bytes: finding slots, putting rows together, and telling the peers.
#pragma once

#include "ops/dispatch/copy_engine/args.hpp"
#include "ops/dispatch/latency/combine.cuh"
#include "ops/dispatch/latency/dispatch.cuh"

namespace mixlane::exchange_gpu {

// Small blocks find room beside the kernels of other work: with 40 registers a thread, and with up to 96.
inline constexpr uint32_t kRouteThreads = 512;
inline constexpr uint32_t kRowThreads = 256;

// ---------------------------------------------------------------------------------------------------------------------
// Dispatch

// The token that has `slot` of rank `target`, ~0u if none has: from the ids, a token per thread at a time. All threads of a
// block of kRouteThreads.
__device__ inline uint32_t token_of_slot(const DispatchKernelArgs& args, uint32_t num_tokens, uint32_t target,
                                         uint32_t slot) {
  constexpr uint32_t kWaves = kRouteThreads / kWave;
  __shared__ uint32_t in_wave[kWaves], found;
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block();
  uint32_t before = 0;
#pragma unroll 1
  for (uint32_t first = 0; first < num_tokens && before <= slot; first += kRouteThreads) {
    const uint32_t token = first + threadIdx.x;
    const bool wanted = token < num_tokens && (ranks_of(args, token) >> target & 1u) != 0;
    const auto wanting = HardwareWave::ballot(wanted);
    if (lane == 0) in_wave[wave] = static_cast<uint32_t>(HardwareWave::count(wanting));
    __syncthreads();
    uint32_t at = before + static_cast<uint32_t>(HardwareWave::count(wanting & HardwareWave::lanes_below()));
#pragma unroll
    for (uint32_t w = 0; w < kWaves; ++w) {
      if (w < wave) at += in_wave[w];
      before += in_wave[w];
    }
    if (wanted && at == slot) found = token;
    __syncthreads();
  }
  return before > slot ? found : ~0u;
}

// A token's record, put together at `record` by all threads of a block.
template <uint32_t kThreads>
__device__ void put_record(const DispatchKernelArgs& args, uint32_t token, std::byte* record) {
  constexpr uint32_t kTogether = kThreads > kRowThreads ? 2 : 4;
  const auto* const from = reinterpret_cast<const uint4*>(args.hidden.data + token * args.hidden.stride);
#pragma unroll 1
  for (uint32_t packet = threadIdx.x; packet < args.num_packets; packet += kTogether * kThreads) {
    uint4 held[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      if (packet + i * kThreads < args.num_packets) held[i] = from[packet + i * kThreads];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      if (packet + i * kThreads < args.num_packets) reinterpret_cast<uint4*>(record)[packet + i * kThreads] = held[i];
  }
  const uint32_t num_words = args.num_scale_words + 2 * args.num_topk;
  for (uint32_t word = threadIdx.x; word < num_words; word += kThreads)
    reinterpret_cast<uint32_t*>(record + args.payload_bytes)[word] = tail_word(args, token, word);
}

// Which rank the `unit`-th record of a range is for, and in which slot.
struct RecordPlace {
  uint32_t slot;
  uint32_t target;
  __device__ RecordPlace(uint32_t unit, uint32_t begin, uint32_t first_target, uint32_t num_targets, const Window& window)
      : slot(begin + unit / num_targets),
        target((first_target + unit % num_targets) % static_cast<uint32_t>(window.num_ranks)) {}
};

// What goes by the first copies: the records of the first `num_slots` slots of the other ranks, a block per record, in turn.
// Blocks find their tokens by themselves, so that nothing comes before them. Behind it the peers have read what was sent
// before.
__global__ void __launch_bounds__(kRouteThreads)
    dispatch_copy_engine_first(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                               const MIXLANE_GRID_CONSTANT CopyStage stage, uint32_t num_slots) {
  __shared__ uint32_t shared_masked;
  const Window& window = args.exchange.window;
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const auto num_peers = static_cast<uint32_t>(window.num_ranks) - 1;
  const uint32_t num_tokens = num_tokens_of(args);
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < num_slots * num_peers; unit += gridDim.x) {
    const RecordPlace place(unit, 0, static_cast<uint32_t>(window.rank) + 1, num_peers, window);
    const uint32_t token = token_of_slot(args, num_tokens, place.target, place.slot);
    if (token != ~0u)
      put_record<kRouteThreads>(args, token, stage.records[place.target] + place.slot * window.record_stride);
  }
  if (blockIdx.x == 0 && call.needs_credits) exchange_credits(args.exchange, call.number, call.masked, &shared_masked);
}

// A token per thread: its slots, for combine and as the list of each rank's tokens.
__global__ void __launch_bounds__(kRouteThreads)
    dispatch_copy_engine_route(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                               const MIXLANE_GRID_CONSTANT CopyStage stage) {
  constexpr uint32_t kWaves = kRouteThreads / kWave;
  __shared__ uint32_t before[kMaxRanks], in_wave[kWaves][kMaxRanks];
  const Window& window = args.exchange.window;
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block();
  const uint32_t num_tokens = num_tokens_of(args), first = blockIdx.x * kRouteThreads, token = first + threadIdx.x;
  if (threadIdx.x < kMaxRanks) before[threadIdx.x] = 0;
  __syncthreads();
  constexpr uint32_t kTogether = 4;  // tokens that a thread fetches at once
  uint32_t earlier = 0;
#pragma unroll 1
  for (uint32_t at = wave * kWave; at < min(first, num_tokens); at += kTogether * kRouteThreads) {
    uint32_t before_it[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      const uint32_t other = at + lane + i * kRouteThreads;
      before_it[i] = other < min(first, num_tokens) ? ranks_of(args, other) : 0;
    }
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) earlier += count_by_rank(before_it[i], window.num_ranks);
  }
  const uint32_t ranks = token < num_tokens ? ranks_of(args, token) : 0;
  const uint32_t mine = count_by_rank(ranks, window.num_ranks);
  if (lane < kMaxRanks) {
    in_wave[wave][lane] = mine;
    if (earlier != 0) atomicAdd(&before[lane], earlier);
  }
  __syncthreads();
#pragma unroll 1
  for (int r = 0; r < window.num_ranks; ++r) {
    const bool wanted = (ranks >> r & 1u) != 0;
    const auto below =
        static_cast<uint32_t>(HardwareWave::count(HardwareWave::ballot(wanted) & HardwareWave::lanes_below()));
    uint32_t slot = before[r] + below;
    for (uint32_t w = 0; w < wave; ++w) slot += in_wave[w][r];
    const bool sent = wanted && slot < static_cast<uint32_t>(window.capacity) && call.sends_to(r);
    if (sent) stage.tokens[int64_t{r} * window.capacity + slot] = static_cast<int32_t>(token);
    if (token < num_tokens)
      args.exchange.routing.slots[int64_t{token} * window.num_ranks + r] = sent ? static_cast<int32_t>(slot) : -1;
  }
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x < static_cast<uint32_t>(window.num_ranks)) {
    uint32_t total = before[threadIdx.x];
    for (uint32_t w = 0; w < kWaves; ++w) total += in_wave[w][threadIdx.x];
    const bool sends = call.sends_to(static_cast<int>(threadIdx.x));
    stage.counts[threadIdx.x] = sends ? static_cast<int32_t>(min(total, static_cast<uint32_t>(window.capacity))) : 0;
  }
}

// The records of slots [begin, end) for the `num_targets` ranks from `first_target` on: put together in this rank's memory,
// its own in the window. A block per record, in turn.
__global__ void __launch_bounds__(kRowThreads)
    dispatch_copy_engine_pack(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                              const MIXLANE_GRID_CONSTANT CopyStage stage, uint32_t begin, uint32_t end,
                              uint32_t first_target, uint32_t num_targets) {
  const Window& window = args.exchange.window;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < (end - begin) * num_targets; unit += gridDim.x) {
    const RecordPlace place(unit, begin, first_target, num_targets, window);
    if (place.slot >= static_cast<uint32_t>(stage.counts[place.target])) continue;
    const auto token = static_cast<uint32_t>(stage.tokens[int64_t{place.target} * window.capacity + place.slot]);
    put_record<kRowThreads>(args, token, stage.records[place.target] + place.slot * window.record_stride);
  }
}

// One block, while copies are under way: what is wrong with the ids.
__global__ void __launch_bounds__(kRowThreads)
    dispatch_copy_engine_report(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  __shared__ ReceiveShared shared;
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const uint32_t num_tokens = num_tokens_of(args);
  if (threadIdx.x < kMaxRanks) shared.needed[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    shared.num_bad = 0;
    shared.first_bad = ~0u;
    if (call.ended) report_end(args.exchange);
  }
  if (args.num_tokens) report_num_tokens(args);
  __syncthreads();
  count_rows(args, num_tokens, shared);
  __syncthreads();
  if (HardwareWave::index_in_block() == 0) report_tokens(args, num_tokens, shared);
}

// One block, when all copies have arrived: tells the peers, and waits for theirs like every other dispatch.
__global__ void __launch_bounds__(kRowThreads)
    dispatch_copy_engine_receive(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                                 const MIXLANE_GRID_CONSTANT CopyStage stage) {
  __shared__ ReceiveShared shared;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  stall_if_asked<ExchangeStage::dispatch>(exchange);
  const Call call = open_call<ExchangeStage::dispatch>(exchange);
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < kMaxRanks) shared.received[rank] = 0;
  if (rank == 0) shared.late = shared.in_lines = shared.with_inbox = 0;
  be_late(exchange, call.number);
  const int32_t sent = rank < window.num_ranks ? stage.counts[rank] : 0;
  if (rank < window.num_ranks && rank != window.rank && call.sends_to(rank)) {
    send_header(args, call, 1, rank);
    gpu::store_release_system(done_flags(window, rank, window.rank),
                              uint64_t{call.epoch} << 32 | static_cast<uint32_t>(sent));
  }
  __syncthreads();
  wait_for_all(exchange, call, shared);
  __syncthreads();
  if (shared.in_lines != 0) unpack_all(exchange, call, shared);
  close_dispatch(exchange, call, static_cast<uint32_t>(sent), num_tokens_of(args), shared);
}

// ---------------------------------------------------------------------------------------------------------------------
// Combine

// Tells the owners that their partial rows of slots [begin, end) are there, whose copies are over; a thread per slot.
__global__ void __launch_bounds__(kRowThreads)
    combine_copy_engine_flag(const MIXLANE_GRID_CONSTANT Exchange exchange, uint32_t begin, uint32_t end) {
  const Window& window = exchange.window;
  const Call call = open_call<ExchangeStage::combine>(exchange);
  const uint32_t slot = begin + blockIdx.x * kRowThreads + threadIdx.x;
  if (slot >= end) return;
  // Without a fence, which would wait for the next copy's bytes: what was copied had arrived before this kernel began.
  for (int owner = 0; owner < window.num_ranks; ++owner)
    if (owner != window.rank && call.sends_to(owner))
      *reinterpret_cast<uint4*>(row_flag(window, owner, window.rank, static_cast<int>(slot))) =
          make_uint4(call.epoch, call.epoch, call.epoch, call.epoch);
}

// Partial rows of slots [begin, end) of all owners, a block per row, in turn. Those below `num_copied` are put together in
// this rank's memory, if a copy takes them from there. What an owner wants in its inbox, and slots that only owners with
// more tokens than this rank have, go to the owner's window at once.
template <CombineWire kWire, PartialSource kSource>
__global__ void __launch_bounds__(kRowThreads)
    combine_copy_engine_make(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT CopyStage stage,
                             uint32_t begin, uint32_t end, uint32_t num_copied) {
  using Wire = WireOctet<kWire>;
  constexpr uint32_t kHeldOctets = kWire == CombineWire::bf16 ? 4 : 1;
  __shared__ PairList pairs;
  __shared__ uint32_t shared_masked;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  stall_if_asked<ExchangeStage::combine>(exchange);
  Call call = open_call<ExchangeStage::combine>(exchange);
  if (begin == 0) {
    if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared_masked);
    send_combine_headers(exchange, call);
  }
  be_late(exchange, call.number);
  const uint32_t with_inbox = kWire == CombineWire::bf16 ? *exchange.routing.with_inbox : 0;
  const auto num_peers = static_cast<uint32_t>(window.num_ranks) - 1;
  uint32_t most = 0;
  for (int r = 0; r < window.num_ranks; ++r)
    if (r != window.rank) most = max(most, static_cast<uint32_t>(exchange.routing.recv_count[r]));
  end = min(end, most);
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; begin + unit / num_peers < end; unit += gridDim.x) {
    const int slot = static_cast<int>(begin + unit / num_peers);
    const int owner = static_cast<int>((static_cast<uint32_t>(window.rank) + 1 + unit % num_peers) % (num_peers + 1));
    if (slot >= exchange.routing.recv_count[owner] || !call.sends_to(owner)) continue;
    if constexpr (kSource == PartialSource::pairs) {
      __syncthreads();  // the list before has been used
      if (HardwareWave::index_in_block() == 0) list_pairs(args, owner, slot, pairs);
      __syncthreads();
    }
    if constexpr (kWire == CombineWire::bf16) {
      if ((with_inbox >> owner & 1u) != 0) {
        put_in_inbox<kSource>(args, pairs, owner, slot, kRowThreads);
        continue;
      }
    }
    const bool copied = static_cast<uint32_t>(slot) < num_copied;
    if (copied && stage.partials[owner] == nullptr) continue;
    std::byte* const to =
        copied ? stage.partials[owner] + slot * window.partial_stride : partial_at(window, owner, window.rank, slot);
    const int64_t row = int64_t{owner} * window.capacity + slot;
#pragma unroll 1
    for (uint32_t at = 0; at < args.num_octets; at += kHeldOctets * kRowThreads) {
      const uint32_t first = at + threadIdx.x;
      Wire held[kHeldOctets];
#pragma unroll
      for (uint32_t i = 0; i < kHeldOctets; ++i)
        if (const bool here = first + i * kRowThreads < args.num_octets; here || kWholeWaves<kWire>)
          held[i] = local_partial<kWire, kSource>(args, pairs, row, first + i * kRowThreads, here);
#pragma unroll
      for (uint32_t i = 0; i < kHeldOctets; ++i)
        if (first + i * kRowThreads < args.num_octets) held[i].store_to_row(to, first + i * kRowThreads, args.num_octets);
    }
    if (copied) continue;
    __syncthreads();
    if (threadIdx.x < kRowParts)
      gpu::store_release<Scope::system>(row_flag(window, owner, window.rank, slot) + threadIdx.x, call.epoch);
  }
}

// The sums of tokens [begin, end), a block per token, in turn; waits for their rows. `closes`: the last of the call, whose
// first block closes it.
template <CombineWire kWire, PartialSource kSource>
__global__ void __launch_bounds__(kRowThreads, kWire == CombineWire::f64 ? 2 : 4)
    combine_copy_engine_add(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, uint32_t begin, uint32_t end, bool closes) {
  __shared__ CombineShared shared;
  const Exchange& exchange = args.exchange;
  const Call call = open_call<ExchangeStage::combine>(exchange);
  if (threadIdx.x == 0) shared.masked = call.masked;
  __syncthreads();
  if (closes && blockIdx.x != 0) count_reader(exchange, call);
  if (args.counts_on_device) end = min(end, static_cast<uint32_t>(*exchange.routing.num_tokens));
  uint32_t turn = 0;
#pragma unroll 1
  for (uint32_t token = begin + blockIdx.x; token < end; token += gridDim.x, turn ^= 1)
    add_up_row<kWire, kSource>(args, call, token, Share{}, shared.pairs[turn], shared.partial[turn], &shared.masked);
  if (!closes || blockIdx.x != 0) return;
  wait_to_close(exchange, call);
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (call.ended) report_end(exchange);
  close_call<ExchangeStage::combine>(exchange, call);
}

}  // namespace mixlane::exchange_gpu
