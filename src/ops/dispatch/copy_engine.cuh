// What is left for kernels where copy engines move the bytes: finding slots, putting rows together, and telling the peers.
#pragma once

#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/copy_args.hpp"
#include "ops/dispatch/dispatch.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kRouteThreads = 1024;
inline constexpr uint32_t kRowThreads = 256;

// ---------------------------------------------------------------------------------------------------------------------
// Dispatch

// A token per thread: its slots, for combine and as the list of each rank's tokens.
__global__ void __launch_bounds__(kRouteThreads)
    dispatch_copy_engine_route(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                               const MIXLANE_GRID_CONSTANT CopyStage stage) {
  constexpr uint32_t kWaves = kRouteThreads / kWave;
  __shared__ uint32_t before[kMaxRanks], in_wave[kWaves][kMaxRanks], shared_masked;
  const Window& window = args.exchange.window;
  Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block();
  const uint32_t num_tokens = num_tokens_of(args), first = blockIdx.x * kRouteThreads, token = first + threadIdx.x;
  if (threadIdx.x < kMaxRanks) before[threadIdx.x] = 0;
  __syncthreads();
  uint32_t earlier = 0;
#pragma unroll 1
  for (uint32_t at = wave * kWave; at < min(first, num_tokens); at += kRouteThreads)
    earlier += count_by_rank(at + lane < num_tokens ? ranks_of(args, at + lane) : 0, window.num_ranks);
  const uint32_t ranks = token < num_tokens ? ranks_of(args, token) : 0;
  const uint32_t mine = count_by_rank(ranks, window.num_ranks);
  if (lane < kMaxRanks) {
    in_wave[wave][lane] = mine;
    if (earlier != 0) atomicAdd(&before[lane], earlier);
  }
  // Behind it the peers have read what was sent before.
  if (call.needs_credits) call.masked = exchange_credits(args.exchange, call.number, call.masked, &shared_masked);
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
  constexpr uint32_t kTogether = 4;
  const Window& window = args.exchange.window;
  const uint32_t num_words = args.num_scale_words + 2 * args.num_topk;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < (end - begin) * num_targets; unit += gridDim.x) {
    const uint32_t slot = begin + unit / num_targets;
    const uint32_t target = (first_target + unit % num_targets) % static_cast<uint32_t>(window.num_ranks);
    if (slot >= static_cast<uint32_t>(stage.counts[target])) continue;
    const auto token = static_cast<uint32_t>(stage.tokens[int64_t{target} * window.capacity + slot]);
    const auto* const from = reinterpret_cast<const uint4*>(args.hidden.data + token * args.hidden.stride);
    std::byte* const record = stage.records[target] + slot * window.record_stride;
#pragma unroll 1
    for (uint32_t packet = threadIdx.x; packet < args.num_packets; packet += kTogether * kRowThreads) {
      uint4 held[kTogether];
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i)
        if (packet + i * kRowThreads < args.num_packets) held[i] = from[packet + i * kRowThreads];
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i)
        if (packet + i * kRowThreads < args.num_packets)
          reinterpret_cast<uint4*>(record)[packet + i * kRowThreads] = held[i];
    }
    for (uint32_t word = threadIdx.x; word < num_words; word += kRowThreads)
      reinterpret_cast<uint32_t*>(record + args.payload_bytes)[word] = tail_word(args, token, word);
  }
}

// One block, while copies are under way: what is wrong with the ids.
__global__ void __launch_bounds__(kMaxThreads)
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
__global__ void __launch_bounds__(kMaxThreads)
    dispatch_copy_engine_receive(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args,
                                 const MIXLANE_GRID_CONSTANT CopyStage stage) {
  __shared__ ReceiveShared shared;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
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
  if (rank < window.num_ranks) {
    const bool here = (shared.late >> rank & 1u) == 0;
    exchange.routing.sent_count[rank] = here ? sent : 0;
    exchange.routing.recv_count[rank] = !here ? 0 : rank == window.rank ? sent : static_cast<int32_t>(shared.received[rank]);
  }
  if (rank != 0) return;
  *exchange.routing.num_tokens = static_cast<int32_t>(num_tokens_of(args));
  *exchange.routing.with_inbox = shared.with_inbox;
  close_call<ExchangeStage::dispatch>(exchange, call);
}

// ---------------------------------------------------------------------------------------------------------------------
// Combine

__device__ inline uint32_t* ready_flag(const CopyStage& stage, int owner, int source, uint32_t group) {
  return reinterpret_cast<uint32_t*>(stage.parts[owner]) + static_cast<uint32_t>(source) * stage.num_ready + group;
}
__device__ inline uint32_t rows_of_group(uint32_t group, uint32_t num_rows) {
  const uint32_t first = group * kReadyRows;
  return first >= num_rows ? 0 : min(num_rows - first, kReadyRows);
}

// Groups without rows, which nobody makes: by all threads of a block.
__device__ inline void report_empty_groups(const CombineKernelArgs& args, const CopyStage& stage, const Call& call) {
  const Window& window = args.exchange.window;
  for (int owner = 0; owner < window.num_ranks; ++owner) {
    if (owner == window.rank || !call.sends_to(owner)) continue;
    const auto num_rows = static_cast<uint32_t>(args.exchange.routing.recv_count[owner]);
    for (uint32_t group = threadIdx.x; group < stage.num_ready; group += blockDim.x)
      if (rows_of_group(group, num_rows) == 0)
        gpu::store_release<Scope::system>(ready_flag(stage, owner, window.rank, group), call.epoch);
  }
}

// This rank's partial rows in slots [begin, end) of all others, into its own memory; owners are told group by group. The
// launch with begin = 0 comes first and opens the call.
template <CombineWire kWire, PartialSource kSource>
__global__ void __launch_bounds__(kRowThreads)
    combine_copy_engine_make(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT CopyStage stage,
                             uint32_t begin, uint32_t end) {
  using Wire = WireOctet<kWire>;
  constexpr uint32_t kHeldOctets = kWire == CombineWire::bf16 ? 4 : 1;
  __shared__ PairList pairs;
  __shared__ uint32_t shared_masked;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  Call call = open_call<ExchangeStage::combine>(exchange);
  if (begin == 0) {
    if (call.ended && blockIdx.x == 0 && threadIdx.x == 0) report_end(exchange);
    if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared_masked);
    send_combine_headers(exchange, call);
    if (blockIdx.x == 0) report_empty_groups(args, stage, call);
  }
  be_late(exchange, call.number);
  const auto num_peers = static_cast<uint32_t>(window.num_ranks) - 1;
  uint32_t most = 0;
  for (int r = 0; r < window.num_ranks; ++r)
    if (r != window.rank) most = max(most, static_cast<uint32_t>(exchange.routing.recv_count[r]));
  end = min(end, most);
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; begin + unit / max(num_peers, 1u) < end; unit += gridDim.x) {
    const int slot = static_cast<int>(begin + unit / num_peers);
    const int owner = static_cast<int>((static_cast<uint32_t>(window.rank) + 1 + unit % num_peers) % (num_peers + 1));
    if (slot >= exchange.routing.recv_count[owner] || !call.sends_to(owner)) continue;
    if constexpr (kSource == PartialSource::pairs) {
      if (HardwareWave::index_in_block() == 0) list_pairs(args, owner, slot, pairs);
      __syncthreads();
    }
    const int64_t row = int64_t{owner} * window.capacity + slot;
    std::byte* const to = stage.parts[window.rank] + stage.partials_at + row * window.partial_stride;
#pragma unroll 1
    for (uint32_t first = threadIdx.x; first < args.num_octets; first += kHeldOctets * kRowThreads) {
      Wire held[kHeldOctets];
#pragma unroll
      for (uint32_t i = 0; i < kHeldOctets; ++i)
        if (first + i * kRowThreads < args.num_octets)
          held[i] = local_partial<kWire, kSource>(args, pairs, row, first + i * kRowThreads);
#pragma unroll
      for (uint32_t i = 0; i < kHeldOctets; ++i)
        if (first + i * kRowThreads < args.num_octets) held[i].store(to + int64_t{first + i * kRowThreads} * Wire::kBytes);
    }
    __syncthreads();
    if (threadIdx.x != 0) continue;
    // The last row of a group tells the owner, whose copy engine reads what all blocks wrote before.
    const uint32_t group = static_cast<uint32_t>(slot) / kReadyRows;
    uint32_t* const made = stage.made + static_cast<uint32_t>(owner) * stage.num_ready + group;
    __threadfence_system();
    if (atomicAdd(made, 1u) + 1 != rows_of_group(group, static_cast<uint32_t>(exchange.routing.recv_count[owner]))) continue;
    *made = 0;
    __threadfence_system();
    gpu::store_release<Scope::system>(ready_flag(stage, owner, window.rank, group), call.epoch);
  }
}

// Until `source` has made its partial rows of groups [begin, end) for this rank; one wave.
__global__ void combine_copy_engine_wait(const MIXLANE_GRID_CONSTANT Exchange exchange,
                                         const MIXLANE_GRID_CONSTANT CopyStage stage, int source, uint32_t begin,
                                         uint32_t end) {
  const Call call = open_call<ExchangeStage::combine>(exchange);
  if (!call.sends_to(source)) return;
  for (uint32_t group = begin + threadIdx.x; group < end; group += blockDim.x) {
    const uint32_t* const flag = ready_flag(stage, exchange.window.rank, source, group);
    const bool here = wait_for(
        exchange, source, call.epoch, [&] { return gpu::load_acquire<Scope::system>(flag); },
        [&](uint32_t stamp) { return stamp == call.epoch; });
    if (!here) return;
  }
}

// The sums of tokens [begin, end), whose partial rows have been fetched. A block per token, in turn.
template <CombineWire kWire, PartialSource kSource>
__global__ void __launch_bounds__(kRowThreads)
    combine_copy_engine_add(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, uint32_t begin, uint32_t end) {
  using Wire = WireOctet<kWire>;
  constexpr int kTogether = 2;  // ranks whose partial rows are loaded at once
  __shared__ PairList pairs;
  const Window& window = args.exchange.window;
  const Call call = open_call<ExchangeStage::combine>(args.exchange);
  if (args.counts_on_device) end = min(end, static_cast<uint32_t>(*args.exchange.routing.num_tokens));
#pragma unroll 1
  for (uint32_t token = begin + blockIdx.x; token < end; token += gridDim.x) {
    const int32_t* const slots = args.exchange.routing.slots + int64_t{token} * window.num_ranks;
    const int own_slot = slots[window.rank];
    if constexpr (kSource == PartialSource::pairs) {
      if (own_slot >= 0 && HardwareWave::index_in_block() == 0) list_pairs(args, window.rank, own_slot, pairs);
      __syncthreads();
    }
#pragma unroll 1
    for (uint32_t octet = threadIdx.x; octet < args.num_octets; octet += kRowThreads) {
      typename Wire::Sum sums[gpu::kOctet] = {};
#pragma unroll 1
      for (int first = 0; first < window.num_ranks; first += kTogether) {
        Wire values[kTogether];
        bool counts[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int r = first + i;
          const int slot = r < window.num_ranks ? slots[r] : -1;
          counts[i] = slot >= 0 && (r == window.rank || call.sends_to(r));
          if (!counts[i]) continue;
          values[i] = r == window.rank
                          ? local_partial<kWire, kSource>(args, pairs, int64_t{r} * window.capacity + slot, octet)
                          : Wire::load(partial_at(window, window.rank, r, slot) + int64_t{octet} * Wire::kBytes);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (!counts[i]) continue;
#pragma unroll
          for (int v = 0; v < gpu::kOctet; ++v) sums[v] += values[i].value(v);
        }
      }
      if (args.addend.data) add_addend(args, token, octet, sums);
      store_output(args, token, octet, sums);
    }
    if constexpr (kSource == PartialSource::pairs) __syncthreads();
  }
}

// One block.
__global__ void combine_copy_engine_close(const MIXLANE_GRID_CONSTANT Exchange exchange) {
  const Call call = open_call<ExchangeStage::combine>(exchange);
  wait_for_combine_headers(exchange, call);
  __syncthreads();
  if (threadIdx.x == 0) close_call<ExchangeStage::combine>(exchange, call);
}

}  // namespace mixlane::exchange_gpu
