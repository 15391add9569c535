// combine.latency: this rank's partial sums on their way to the rows' owners.
#pragma once

#include "ops/dispatch/gpu/geometry.hpp"
#include "ops/dispatch/latency/inbox.cuh"

namespace mixlane::exchange_gpu {

// Octets of a row that a thread has on their way at once; sums of pairs and the inbox together leave registers for one.
template <CombineWire kWire, PartialSource kSource, bool kInbox>
inline constexpr uint32_t kOctetsHeld = kWire != CombineWire::bf16 || (kInbox && kSource == PartialSource::pairs) ? 1 : 2;

template <PartialSource kSource, bool kInbox>
inline constexpr uint32_t kMostThreads = (kInbox && kSource != PartialSource::pairs) ? kMaxSharingThreads : kMaxThreads;

struct CombineShared {
  PairList pairs[2];                       // of this row and of the one before
  const std::byte* partial[2][kMaxRanks];  // of this token and of the one before; null: none
  uint32_t masked;
};

// How many rows this rank received from others; lanes are sources, ranks begin with different ones.
struct ReceivedCounts {
  int source;
  uint32_t count = 0;
  __device__ explicit ReceivedCounts(const Exchange& exchange) {
    const int lane = static_cast<int>(HardwareWave::lane()), num_ranks = exchange.window.num_ranks;
    source = exchange.window.rank + 1 + lane;
    if (source >= num_ranks) source -= num_ranks;
    if (lane + 1 < num_ranks) count = static_cast<uint32_t>(exchange.routing.recv_count[source]);
  }
};

// Those rows, source after source.
class ReceivedRange {
 public:
  // Bits of `without`: sources left out.
  __device__ ReceivedRange(const ReceivedCounts& received, uint32_t without) : source_(received.source) {
    const uint32_t count = received.count != 0 && (without >> source_ & 1u) == 0 ? received.count : 0;
    end_ = gpu::Wave<kMaxRanks>::inclusive_sum(count);
    begin_ = end_ - count;
    total_ = HardwareWave::shuffle(end_, kMaxRanks - 1);
  }
  __device__ ReceivedRange(const Exchange& exchange, uint32_t without) : ReceivedRange(ReceivedCounts(exchange), without) {}
  __device__ uint32_t total() const { return total_; }
  // Whole waves.
  __device__ void find(uint32_t row, int& source, int& slot) const {
    const auto behind = HardwareWave::ballot(row < end_);
    const int lane = __ffsll(static_cast<long long>(behind)) - 1;
    source = HardwareWave::shuffle(source_, lane);
    slot = static_cast<int>(row - HardwareWave::shuffle(begin_, lane));
  }

 private:
  int source_;
  uint32_t begin_;
  uint32_t end_;
  uint32_t total_;
};

// A thread's octets of the row that its block most likely sends first, fetched before the counts are known: as if as many
// rows had come from the next rank as this one has tokens.
template <CombineWire kWire, PartialSource kSource, bool kInbox>
struct FirstRow {
  static constexpr uint32_t kHeld = kOctetsHeld<kWire, kSource, kInbox>;
  int owner = -1;  // none
  int slot = 0;
  Share share;
  WireOctet<kWire> held[kHeld];

  FirstRow() = default;
  __device__ FirstRow(const CombineKernelArgs& args, uint32_t num_threads) {
    const Window& window = args.exchange.window;
    const uint32_t num_tokens =
        args.counts_on_device ? static_cast<uint32_t>(*args.exchange.routing.num_tokens) : args.num_tokens;
    share.log2_parts = Share::parts_for(num_tokens * (static_cast<uint32_t>(window.num_ranks) - 1), args.num_send_blocks);
    share.part = blockIdx.x & ((1u << share.log2_parts) - 1);
    slot = static_cast<int>(blockIdx.x >> share.log2_parts);
    if (window.num_ranks == 1 || slot >= window.capacity || slot >= static_cast<int>(num_tokens)) return;
    owner = window.rank + 1 == window.num_ranks ? 0 : window.rank + 1;
    const uint32_t first = first_octet<kWire>(args, share) + threadIdx.x, end = end_octet<kWire>(args, share);
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i)
      if (first + i * num_threads < end)
        held[i] = local_partial<kWire, kSource>(args, PairList{}, int64_t{owner} * window.capacity + slot,
                                                first + i * num_threads);
  }
  __device__ bool is(const Share& other, int its_owner, int its_slot) const {
    return owner == its_owner && slot == its_slot && share.log2_parts == other.log2_parts;
  }
};

// Threads of a block that send: with flags the last wave, which also lists pairs, does not.
template <PartialSource kSource, bool kInbox>
__device__ uint32_t num_sending() {
  return kInbox && kSource != PartialSource::pairs ? blockDim.x : blockDim.x - kWave;
}

// This block's share of the rows in `range`, to their owners' inboxes or with a flag each.
template <CombineWire kWire, PartialSource kSource, bool kInbox>
__device__ void send_rows(const CombineKernelArgs& args, uint32_t epoch, const ReceivedRange& range, CombineShared& shared,
                          const FirstRow<kWire, kSource, kInbox>& guess) {
  using Wire = WireOctet<kWire>;
  constexpr uint32_t kHeldOctets = kOctetsHeld<kWire, kSource, kInbox>;
  constexpr bool kPairs = kSource == PartialSource::pairs;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  const uint32_t num_threads = num_sending<kSource, kInbox>(), stride = args.num_send_blocks, lane = HardwareWave::lane();
  const bool aside = threadIdx.x >= num_threads;  // the wave that lists pairs and flags rows
  Share share;
  share.log2_parts = Share::parts_for(range.total(), stride);
  const uint32_t num_units = range.total() << share.log2_parts;
  const auto list = [&](uint32_t unit, PairList& pairs) {
    int source = 0, slot = 0;
    range.find(unit >> share.log2_parts, source, slot);
    list_pairs(args, source, slot, pairs);
  };
  if constexpr (kPairs) {
    if (num_units != 0) __syncthreads();  // the last list of other rows has been used
    if (aside && blockIdx.x < num_units) list(blockIdx.x, shared.pairs[0]);
    __syncthreads();
  }
  // Rows that are flagged together: making sure that they have arrived takes a while, in which the other waves go on with
  // the next ones, and holds up what is on its way. Sums of pairs have no registers left for this.
  const uint32_t rows_each = (num_units + stride - 1) / stride;
  const uint32_t together = kPairs ? 1 : rows_each >= 16 ? 4 : rows_each >= 4 ? 2 : 1;
  uint32_t* flag = nullptr;  // this lane's word
  uint32_t turn = 0, num_unflagged = 0;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < num_units; unit += stride, turn ^= 1) {
    share.part = unit & ((1u << share.log2_parts) - 1);
    int owner = 0, slot = 0;
    range.find(unit >> share.log2_parts, owner, slot);
    if (aside) {
      if (kPairs && unit + stride < num_units) list(unit + stride, shared.pairs[turn ^ 1]);
    } else {
      const int64_t row = int64_t{owner} * window.capacity + slot;
      const uint32_t end = end_octet<kWire>(args, share);
      bool guessed = !kPairs && unit == blockIdx.x && guess.is(share, owner, slot);
#pragma unroll 1
      for (uint32_t begin = first_octet<kWire>(args, share); begin < end; begin += kHeldOctets * num_threads) {
        const uint32_t first = begin + threadIdx.x;
        Wire held[kHeldOctets];
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i)
          if (const bool here = first + i * num_threads < end; guessed)
            held[i] = guess.held[i];
          else if (here || kWholeWaves<kWire>)
            held[i] = local_partial<kWire, kSource>(args, shared.pairs[turn], row, first + i * num_threads, here);
        guessed = false;
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i) {
          const uint32_t octet = first + i * num_threads;
          if (octet >= end) break;
          if constexpr (kInbox)
            store_to_inbox(inbox_row(window, owner, window.rank, slot) + octet, held[i]);
          else
            held[i].store_to_row(partial_at(window, owner, window.rank, slot), octet, args.num_octets);
        }
      }
    }
    be_late(exchange, epoch);
    if constexpr (kInbox) {
      if constexpr (kPairs) __syncthreads();  // the list has been used
      continue;
    }
    __syncthreads();
    // This part's words of the row's flag.
    const uint32_t word = lane % kRowParts;
    if (lane / kRowParts == num_unflagged && word >= share.first_of(kRowParts) && word < share.end_of(kRowParts))
      flag = row_flag(window, owner, window.rank, slot) + word;
    if (++num_unflagged < together && unit + stride < num_units) continue;
    if (aside && flag != nullptr) gpu::store_release<Scope::system>(flag, epoch);
    flag = nullptr;
    num_unflagged = 0;
  }
}

// The same for the owners that want the other way than this rank: in line this code would take registers from the usual.
template <CombineWire kWire, PartialSource kSource, bool kInbox>
static __device__ __noinline__ void send_rows_aside(const CombineKernelArgs& args, uint32_t epoch, uint32_t without,
                                                    CombineShared& shared) {
  send_rows<kWire, kSource, kInbox>(args, epoch, ReceivedRange(args.exchange, without), shared, {});
}

// kInbox: this rank gets its own partial sums in its inbox, so most likely all owners do.
template <CombineWire kWire, PartialSource kSource, bool kInbox>
__device__ void send_partials(const CombineKernelArgs& args, CombineShared& shared) {
  const Exchange& exchange = args.exchange;
  stall_if_asked<ExchangeStage::combine>(exchange);
  constexpr bool kGuesses = kInbox && kSource != PartialSource::pairs;
  FirstRow<kWire, kSource, kInbox> guess;
  if constexpr (kGuesses) guess = FirstRow<kWire, kSource, kInbox>(args, num_sending<kSource, kInbox>());
  const uint32_t with_inbox = kWire == CombineWire::bf16 ? *exchange.routing.with_inbox : 0;
  const ReceivedCounts received(exchange);
  Call call = open_call<ExchangeStage::combine>(exchange);
  const uint32_t others = kInbox ? ~with_inbox : with_inbox;  // owners that want the other way
  ReceivedRange range(received, call.masked | others);
  if (call.needs_credits) {
    call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
    range = ReceivedRange(received, call.masked | others);
  }
  count_reader(exchange, call);
  send_combine_headers(exchange, call);
  if (call.ended && blockIdx.x == 0 && threadIdx.x == 0) report_end(exchange);
  send_rows<kWire, kSource, kInbox>(args, call.epoch, range, shared, guess);
  if constexpr (kWire == CombineWire::bf16)
    if (const uint32_t ranks = (1u << exchange.window.num_ranks) - 1 - (1u << exchange.window.rank); (others & ranks) != 0)
      send_rows_aside<kWire, kSource, !kInbox>(args, call.epoch, call.masked | ~others, shared);
}

}  // namespace mixlane::exchange_gpu
