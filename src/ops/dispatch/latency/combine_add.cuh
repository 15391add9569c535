// combine.latency: the partial sums of this rank's tokens, added up in rank order.
#pragma once

#include "ops/dispatch/latency/combine_send.cuh"

namespace mixlane::exchange_gpu {

// Waits until the partial sums of one token have come from all other ranks, and notes where they lie; the first wave.
// Lanes are words of the ranks' flags.
__device__ inline void wait_for_partials(const CombineKernelArgs& args, const Call& call, const Share& share, uint32_t token,
                                         const std::byte** partial, uint32_t* shared_masked) {
  const Window& window = args.exchange.window;
  const int rank = static_cast<int>(threadIdx.x / kRowParts);
  const uint32_t word = threadIdx.x % kRowParts;
  if (rank >= window.num_ranks) return;
  const int slot = args.exchange.routing.slots[int64_t{token} * window.num_ranks + rank];
  const bool counts = slot >= 0 && (*shared_masked >> rank & 1u) == 0;
  bool here = counts;
  if (counts && rank != window.rank && word >= share.first_of(kRowParts) && word < share.end_of(kRowParts)) {
    const uint32_t* const flag = row_flag(window, window.rank, rank, slot) + word;
    here = wait_for(
        args.exchange, rank, call.epoch, [&] { return gpu::load_acquire<Scope::system>(flag); },
        [&](uint32_t stamp) { return stamp == call.epoch; });
    if (!here) atomicOr(shared_masked, 1u << rank);
  }
  if (word == 0) partial[rank] = counts ? partial_at(window, window.rank, rank, slot) : nullptr;
}

__device__ inline void store_output(const CombineKernelArgs& args, uint32_t token, uint32_t octet, const float (&sums)[8]) {
  std::byte* const row = args.output + token * args.output_stride;
  if (args.output_dtype == DType::bf16)
    WireOctet<CombineWire::bf16>::of(sums).store(row + int64_t{octet} * 16);
  else
    WireOctet<CombineWire::f32>::of(sums).store(row + int64_t{octet} * 32);
}
__device__ inline void store_output(const CombineKernelArgs& args, uint32_t token, uint32_t octet, const double (&sums)[8]) {
  float rounded[8];
#pragma unroll
  for (int v = 0; v < gpu::kOctet; ++v)
    rounded[v] = args.output_dtype == DType::bf16 ? f64_to_odd_f32(sums[v]) : static_cast<float>(sums[v]);
  store_output(args, token, octet, rounded);
}

template <class Sum>
__device__ void add_addend(const CombineKernelArgs& args, uint32_t token, uint32_t octet, Sum (&sums)[8]) {
  const std::byte* const row = args.addend.data + token * args.addend.stride;
  if (args.addend_dtype == DType::bf16) {
    const auto values = WireOctet<CombineWire::bf16>::load(row + int64_t{octet} * 16);
#pragma unroll
    for (int v = 0; v < gpu::kOctet; ++v) sums[v] += static_cast<Sum>(values.value(v));
  } else {
    const auto values = WireOctet<CombineWire::f32>::load(row + int64_t{octet} * 32);
#pragma unroll
    for (int v = 0; v < gpu::kOctet; ++v) sums[v] += static_cast<Sum>(values.value(v));
  }
}

// A thread's octets of a token's sum, a block's width apart, those before `end`.
template <uint32_t kCount, class Sum>
__device__ void store_sums(const CombineKernelArgs& args, uint32_t token, uint32_t first, uint32_t end,
                           Sum (&sums)[kCount][gpu::kOctet]) {
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) {
    const uint32_t octet = first + i * blockDim.x;
    if (octet >= end) break;
    if (args.addend.data) add_addend(args, token, octet, sums[i]);
    store_output(args, token, octet, sums[i]);
  }
}

// One token, or a part of its row; all threads of the block.
template <CombineWire kWire, PartialSource kSource>
__device__ void add_up_row(const CombineKernelArgs& args, const Call& call, uint32_t token, const Share& share,
                           PairList& pairs, const std::byte** partial, uint32_t* shared_masked) {
  using Wire = WireOctet<kWire>;
  using Sum = typename Wire::Sum;
  constexpr uint32_t kHeldOctets = kOctetsHeld<kWire, kSource, false>;
  constexpr int kTogether = 2;  // ranks whose partial sums are fetched at once
  const Window& window = args.exchange.window;
  const int own_slot = args.exchange.routing.slots[int64_t{token} * window.num_ranks + window.rank];
  const bool own = own_slot >= 0;
  if constexpr (kSource == PartialSource::pairs) {
    if (own && HardwareWave::index_in_block() == 0) list_pairs(args, window.rank, own_slot, pairs);
    __syncthreads();
  }
  const uint32_t end = end_octet<kWire>(args, share);
  const int64_t own_row = int64_t{window.rank} * window.capacity + own_slot;
  Wire held[kHeldOctets] = {};
  const auto sum_own = [&](uint32_t first) {
#pragma unroll
    for (uint32_t i = 0; i < kHeldOctets; ++i)
      if (const bool here = first + i * blockDim.x < end; own && (here || kWholeWaves<kWire>))
        held[i] = local_partial<kWire, kSource>(args, pairs, own_row, first + i * blockDim.x, here);
  };
  uint32_t begin = first_octet<kWire>(args, share);
  sum_own(begin + threadIdx.x);  // while the others' rows are on their way
  if (HardwareWave::index_in_block() == 0) wait_for_partials(args, call, share, token, partial, shared_masked);
  __syncthreads();
  const uint32_t masked = *shared_masked;

#pragma unroll 1
  for (uint32_t round = 0; begin < end; begin += kHeldOctets * blockDim.x, ++round) {
    const uint32_t first = begin + threadIdx.x;
    if (round != 0) sum_own(first);
    Sum sums[kHeldOctets][gpu::kOctet] = {};
#pragma unroll 1
    for (int group = 0; group < window.num_ranks; group += kTogether) {
      Wire values[kTogether][kHeldOctets];
      bool counts[kTogether];
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const int r = group + g;
        counts[g] = r < window.num_ranks && partial[r] != nullptr && (masked >> r & 1u) == 0;
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i) {
          values[g][i] = held[i];
          const uint32_t octet = first + i * blockDim.x;
          if (counts[g] && r != window.rank && octet < end)
            values[g][i] = Wire::load_from_row(partial[r], octet, args.num_octets);
        }
      }
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        if (!counts[g]) continue;
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i)
#pragma unroll
          for (int v = 0; v < gpu::kOctet; ++v) sums[i][v] += values[g][i].value(v);
      }
    }
    store_sums(args, token, first, end, sums);
  }
}

// Lane r: the token's slot in rank r, -1 for none.
__device__ inline int lane_slot(const CombineKernelArgs& args, uint32_t token, bool counts) {
  const int lane = static_cast<int>(HardwareWave::lane()), num_ranks = args.exchange.window.num_ranks;
  return counts && lane < num_ranks ? args.exchange.routing.slots[int64_t{token} * num_ranks + lane] : -1;
}

// The same from the inbox; `slot`: lane_slot's.
template <PartialSource kSource>
__device__ void add_up_from_inbox(const CombineKernelArgs& args, const Call& call, uint32_t token, const Share& share,
                                  int slot, PairList& pairs, uint32_t* shared_masked) {
  constexpr CombineWire kWire = CombineWire::bf16;
  constexpr uint32_t kHeldOctets = kOctetsHeld<kWire, kSource, true>;
  const Window& window = args.exchange.window;
  const int own_slot = HardwareWave::shuffle(slot, window.rank);
  if constexpr (kSource == PartialSource::pairs) {
    if (own_slot >= 0 && HardwareWave::index_in_block() == 0) list_pairs(args, window.rank, own_slot, pairs);
    __syncthreads();
  }
  const uint32_t end = end_octet<kWire>(args, share);
#pragma unroll 1
  for (uint32_t begin = first_octet<kWire>(args, share); begin < end; begin += kHeldOctets * blockDim.x) {
    const uint32_t first = begin + threadIdx.x;
    InboxOctet own[kHeldOctets];
#pragma unroll
    for (uint32_t i = 0; i < kHeldOctets; ++i)
      if (own_slot >= 0 && first + i * blockDim.x < end)
        own[i] = local_partial<kWire, kSource>(args, pairs, int64_t{window.rank} * window.capacity + own_slot,
                                               first + i * blockDim.x);
    bool late = false;
    uint32_t counts = 0;  // bit per rank whose row came
    do {                  // again without the ranks that turn out to be late
      late = false;
      counts = HardwareWave::ballot(slot >= 0) & ~*static_cast<volatile uint32_t*>(shared_masked);
      float sums[kHeldOctets][gpu::kOctet] = {};
#pragma unroll 1
      for (int r = 0; r < window.num_ranks; ++r) {
        if ((counts >> r & 1u) == 0) continue;
        InboxOctet values[kHeldOctets];
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i) values[i] = own[i];
        if (r != window.rank) {
          const gpu::Packet* const row = inbox_row(window, window.rank, r, HardwareWave::shuffle(slot, r));
          if (!load_from_inbox(args.exchange, call.epoch, r, row, first, blockDim.x, end, values)) {
            atomicOr(shared_masked, 1u << r);
            late = true;
          }
        }
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i)
#pragma unroll
          for (int v = 0; v < gpu::kOctet; ++v) sums[i][v] += values[i].value(v);
      }
      store_sums(args, token, first, end, sums);
    } while (__syncthreads_or(late) != 0);
#pragma unroll 1
    for (int r = 0; r < window.num_ranks; ++r) {
      if ((counts >> r & 1u) == 0 || r == window.rank) continue;
      gpu::Packet* const row = inbox_row(window, window.rank, r, HardwareWave::shuffle(slot, r));
#pragma unroll
      for (uint32_t i = 0; i < kHeldOctets; ++i)
        if (const uint32_t octet = first + i * blockDim.x; octet < end) gpu::store_packet(row + octet, {});
    }
  }
}

// The block that closes the call: all blocks have read the state, and all peers have begun.
__device__ inline void wait_to_close(const Exchange& exchange, const Call& call) {
  wait_for_combine_headers(exchange, call);
  if (threadIdx.x + 1 == blockDim.x) wait_for_readers(exchange);
}

template <CombineWire kWire, PartialSource kSource, bool kInbox>
__device__ void add_up(const CombineKernelArgs& args, CombineShared& shared) {
  const Exchange& exchange = args.exchange;
  const Call call = open_call<ExchangeStage::combine>(exchange);
  const uint32_t block = blockIdx.x - args.num_send_blocks, num_blocks = gridDim.x - args.num_send_blocks;
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (block == 0) {
    wait_to_close(exchange, call);  // while rows are on their way
    __syncthreads();
  } else {
    count_reader(exchange, call);
  }
  const uint32_t num_tokens = args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens;
  Share share;
  share.log2_parts = Share::parts_for(num_tokens, num_blocks);
  uint32_t turn = 0;
  const uint32_t num_units = num_tokens << share.log2_parts;
  [[maybe_unused]] int slot = 0;
  if constexpr (kInbox) slot = lane_slot(args, block >> share.log2_parts, block < num_units);
#pragma unroll 1
  for (uint32_t unit = block; unit < num_units; unit += num_blocks, turn ^= 1) {
    share.part = unit & ((1u << share.log2_parts) - 1);
    const uint32_t token = unit >> share.log2_parts;
    [[maybe_unused]] int next_slot = 0;
    if constexpr (kInbox)
      next_slot = lane_slot(args, (unit + num_blocks) >> share.log2_parts, unit + num_blocks < num_units);
    if constexpr (kInbox)
      add_up_from_inbox<kSource>(args, call, token, share, slot, shared.pairs[turn], &shared.masked);
    else
      add_up_row<kWire, kSource>(args, call, token, share, shared.pairs[turn], shared.partial[turn], &shared.masked);
    slot = next_slot;
  }
  if (block != 0) return;
  __syncthreads();
  if (threadIdx.x == 0) close_call<ExchangeStage::combine>(exchange, call);
}

}  // namespace mixlane::exchange_gpu
