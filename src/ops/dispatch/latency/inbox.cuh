// Partial sums that need no flags, in bf16: a word of zeros in an owner's inbox has not come yet. Whoever sends one puts -0
// in its place, which leaves every sum as it is. So no store has to be known to have arrived before a flag can follow, which
// saves a way across the link and never holds up what is on its way.
//
// Whoever has read a row clears it. That is over before its writer may use the row again, since that waits for this rank's
// next dispatch, or for its credit.
#pragma once

#include "ops/dispatch/gpu/partials.cuh"

namespace mixlane::exchange_gpu {

using InboxOctet = WireOctet<CombineWire::bf16>;

__device__ inline gpu::Packet* inbox_row(const Window& window, int owner, int source, int slot) {
  return reinterpret_cast<gpu::Packet*>(window.parts[owner] + window.inbox_at +
                                        (int64_t{source} * window.inbox_rows + slot) * window.partial_stride);
}

__device__ inline void store_to_inbox(gpu::Packet* to, const InboxOctet& octet) {
  constexpr uint32_t kMinusZeros = 0x80008000u;
  gpu::Packet packet;
#pragma unroll
  for (int i = 0; i < InboxOctet::kWords; ++i) packet.words[i] = octet.words[i] != 0 ? octet.words[i] : kMinusZeros;
  gpu::store_packet_system(to, packet);
}

// A partial row; threads [0, num_threads) of the block.
template <PartialSource kSource>
__device__ void put_in_inbox(const CombineKernelArgs& args, const PairList& pairs, int owner, int slot,
                             uint32_t num_threads) {
  const Window& window = args.exchange.window;
  gpu::Packet* const to = inbox_row(window, owner, window.rank, slot);
  for (uint32_t octet = threadIdx.x; octet < args.num_octets; octet += num_threads)
    store_to_inbox(to + octet,
                   local_partial<CombineWire::bf16, kSource>(args, pairs, int64_t{owner} * window.capacity + slot, octet));
}

// The thread's octets of a row from `source`, `step` apart from the one at `first` on, those before `end`; looks until all
// of the wave's have come. Whole waves; false if `source` is left out.
template <uint32_t kCount>
__device__ bool load_from_inbox(const Exchange& exchange, uint32_t epoch, int source, const gpu::Packet* row, uint32_t first,
                                uint32_t step, uint32_t end, InboxOctet (&octets)[kCount]) {
  constexpr uint32_t kLooksPerCheck = 64;
  uint64_t since = 0;
  for (uint32_t looks = 1;; ++looks) {
    bool here = true;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      if (first + i * step >= end) continue;
      const gpu::Packet packet = gpu::load_packet_system(row + first + i * step);
#pragma unroll
      for (int w = 0; w < InboxOctet::kWords; ++w) {
        octets[i].words[w] = packet.words[w];
        here &= packet.words[w] != 0;
      }
    }
    if (HardwareWave::ballot(!here) == 0) return true;
    if (looks % kLooksPerCheck != 0) continue;
    // What has come in full is the combine before this one.
    int goes_on = 1;
    if (HardwareWave::lane() == 0) goes_on = keep_waiting(exchange, source, epoch, epoch - 1, since);
    if (HardwareWave::shuffle(goes_on, 0) == 0) return false;
  }
}

}  // namespace mixlane::exchange_gpu
