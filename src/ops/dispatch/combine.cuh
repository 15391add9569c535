// combine.latency: one launch. The first blocks send this rank's partial sums to the rows' owners, a
// flag per row behind them; the others wait for the partial sums of this rank's tokens, row by row, and add them up.
#pragma once

#include "ops/dispatch/lines.cuh"

namespace mixlane::exchange_gpu {

// Octets of a row that a thread has on their way at once.
template <CombineWire kWire>
inline constexpr uint32_t kOctetsHeld = kWire == CombineWire::bf16 ? 2 : 1;

struct CombineShared {
  PairList pairs[2];                       // of this row and of the one before
  const std::byte* partial[2][kMaxRanks];  // of this token and of the one before; null: none
  uint32_t masked;
};

// ---------------------------------------------------------------------------------------------------------------------
// Sending

// The rows that this rank received from others, source after source; lanes are sources, ranks begin with different ones.
class ReceivedRange {
 public:
  // Bits of `without`: sources left out.
  __device__ ReceivedRange(const Exchange& exchange, uint32_t without) {
    const int lane = static_cast<int>(HardwareWave::lane()), num_ranks = exchange.window.num_ranks;
    source_ = exchange.window.rank + 1 + lane;
    if (source_ >= num_ranks) source_ -= num_ranks;
    uint32_t count = 0;
    if (lane + 1 < num_ranks) count = static_cast<uint32_t>(exchange.routing.recv_count[source_]);
    if (lane + 1 < num_ranks && (without >> source_ & 1u) != 0) count = 0;
    end_ = HardwareWave::inclusive_sum(count);
    begin_ = end_ - count;
    total_ = HardwareWave::shuffle(end_, kMaxRanks - 1);
  }
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

// Rows that go in lines, a quarter of one at a time. `guess`: the thread's line of the first one by guess_line, or null.
template <PartialSource kSource>
__device__ void send_in_lines(const CombineKernelArgs& args, const Call& call, uint32_t owners, PairList& pairs,
                              const LineWords* guess) {
  const Window& window = args.exchange.window;
  const ReceivedRange range(args.exchange, call.masked | ~owners);
  const uint32_t num_threads = blockDim.x - kWave;
  Share share;
  share.log2_parts = kLog2RowParts;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < range.total() * kRowParts; unit += args.num_send_blocks) {
    share.part = unit % kRowParts;
    int owner = 0, slot = 0;
    range.find(unit / kRowParts, owner, slot);
    if constexpr (kSource == PartialSource::pairs) {
      __syncthreads();  // the list before has been used
      if (threadIdx.x >= num_threads) list_pairs(args, owner, slot, pairs);
      __syncthreads();
    }
    const bool guessed = guess != nullptr && unit == blockIdx.x && owner == guessed_owner(window);
    if (threadIdx.x < num_threads)
      send_lines<kSource>(args, call.epoch, pairs, owner, slot, share, num_threads, guessed ? guess : nullptr);
    be_late(args.exchange, call.number);
  }
}
// A rank with many tokens has few of these: in line this code would take registers from the usual.
template <PartialSource kSource>
static __device__ __noinline__ void send_in_lines_aside(const CombineKernelArgs& args, const Call& call, uint32_t owners,
                                                        PairList& pairs) {
  send_in_lines<kSource>(args, call, owners, pairs, nullptr);
}

template <CombineWire kWire, PartialSource kSource, bool kFew>
__device__ void send_partials(const CombineKernelArgs& args, Call call, CombineShared& shared) {
  using Wire = WireOctet<kWire>;
  constexpr uint32_t kHeldOctets = kOctetsHeld<kWire>;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  const uint32_t num_threads = blockDim.x - kWave, stride = args.num_send_blocks, lane = HardwareWave::lane();
  const bool flags = threadIdx.x >= num_threads;  // the last wave; the others send
  // The first row is most likely this one: fetched before that is known.
  constexpr bool kGuesses = kFew && kSource != PartialSource::pairs;
  [[maybe_unused]] LineWords guess;
  if constexpr (kGuesses)
    if (!flags) guess = guess_line<kSource>(args);
  // Owners that want their rows in lines.
  const uint32_t in_lines = kWire == CombineWire::bf16 ? *exchange.routing.in_lines : 0;
  ReceivedRange range(exchange, call.masked | in_lines);
  if (call.needs_credits) {
    call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
    range = ReceivedRange(exchange, call.masked | in_lines);
  }
  count_reader(exchange, call);
  send_combine_headers(exchange, call);
  if constexpr (kFew)
    send_in_lines<kSource>(args, call, in_lines, shared.pairs[0], kGuesses ? &guess : nullptr);
  else if constexpr (kWire == CombineWire::bf16)
    if (in_lines != 0) send_in_lines_aside<kSource>(args, call, in_lines, shared.pairs[0]);

  Share share;
  share.log2_parts = Share::parts_for(range.total(), stride);
  const uint32_t num_units = range.total() << share.log2_parts;
  const auto list = [&](uint32_t unit, PairList& pairs) {
    int source = 0, slot = 0;
    range.find(unit >> share.log2_parts, source, slot);
    list_pairs(args, source, slot, pairs);
  };
  if constexpr (kSource == PartialSource::pairs) {
    if (num_units != 0) __syncthreads();  // the list of the last line has been used
    if (flags && blockIdx.x < num_units) list(blockIdx.x, shared.pairs[0]);
    __syncthreads();
  }
  // Rows that are flagged together: making sure that they have arrived takes a while, in which the other waves go on with
  // the next ones, and holds up what is on its way. Sums of pairs have no registers left for this.
  const uint32_t rows_each = (num_units + stride - 1) / stride;
  const uint32_t together = kSource == PartialSource::pairs ? 1 : rows_each >= 16 ? 4 : rows_each >= 4 ? 2 : 1;
  uint32_t* flag = nullptr;  // this lane's word
  uint32_t turn = 0, num_unflagged = 0;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x; unit < num_units; unit += stride, turn ^= 1) {
    share.part = unit & ((1u << share.log2_parts) - 1);
    int owner = 0, slot = 0;
    range.find(unit >> share.log2_parts, owner, slot);
    if (flags) {
      if (kSource == PartialSource::pairs && unit + stride < num_units) list(unit + stride, shared.pairs[turn ^ 1]);
    } else {
      const int64_t row = int64_t{owner} * window.capacity + slot;
      std::byte* const to = partial_at(window, owner, window.rank, slot);
      const uint32_t end = end_octet<kWire>(args, share);
#pragma unroll 1
      for (uint32_t begin = first_octet<kWire>(args, share); begin < end; begin += kHeldOctets * num_threads) {
        const uint32_t first = begin + threadIdx.x;
        Wire held[kHeldOctets];
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i)
          if (const bool here = first + i * num_threads < end; here || kWholeWaves<kWire>)
            held[i] = local_partial<kWire, kSource>(args, shared.pairs[turn], row, first + i * num_threads, here);
#pragma unroll
        for (uint32_t i = 0; i < kHeldOctets; ++i)
          if (first + i * num_threads < end) held[i].store_to_row(to, first + i * num_threads, args.num_octets);
      }
    }
    be_late(exchange, call.number);
    __syncthreads();
    // This part's words of the row's flag.
    const uint32_t word = lane % kRowParts;
    if (lane / kRowParts == num_unflagged && word >= share.first_of(kRowParts) && word < share.end_of(kRowParts))
      flag = row_flag(window, owner, window.rank, slot) + word;
    if (++num_unflagged < together && unit + stride < num_units) continue;
    if (flags && flag != nullptr) gpu::store_release<Scope::system>(flag, call.epoch);
    flag = nullptr;
    num_unflagged = 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Adding up

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

// One token, or a part of its row; all threads of the block.
template <CombineWire kWire, PartialSource kSource>
__device__ void add_up_row(const CombineKernelArgs& args, const Call& call, uint32_t token, const Share& share,
                           PairList& pairs, const std::byte** partial, uint32_t* shared_masked) {
  using Wire = WireOctet<kWire>;
  using Sum = typename Wire::Sum;
  constexpr uint32_t kHeldOctets = kOctetsHeld<kWire>;
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
#pragma unroll
    for (uint32_t i = 0; i < kHeldOctets; ++i) {
      const uint32_t octet = first + i * blockDim.x;
      if (octet >= end) break;
      if (args.addend.data) add_addend(args, token, octet, sums[i]);
      store_output(args, token, octet, sums[i]);
    }
  }
}

// The block that closes the call.
__device__ inline void finish_combine(const Exchange& exchange, const Call& call) {
  wait_for_combine_headers(exchange, call);
  if (threadIdx.x == 0) wait_for_readers(exchange);
  __syncthreads();
  if (threadIdx.x == 0) close_call<ExchangeStage::combine>(exchange, call);
}

template <CombineWire kWire, PartialSource kSource, bool kFew>
__device__ void add_up(const CombineKernelArgs& args, const Call& call, CombineShared& shared) {
  const Exchange& exchange = args.exchange;
  const uint32_t block = blockIdx.x - args.num_send_blocks, num_blocks = gridDim.x - args.num_send_blocks;
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (block == 0)
    __syncthreads();
  else
    count_reader(exchange, call);
  const uint32_t num_tokens = args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens;
  Share share;
  share.log2_parts = Share::parts_for(num_tokens, num_blocks);
  uint32_t turn = 0;
#pragma unroll 1
  for (uint32_t unit = block; unit < num_tokens << share.log2_parts; unit += num_blocks, turn ^= 1) {
    share.part = unit & ((1u << share.log2_parts) - 1);
    const uint32_t token = unit >> share.log2_parts;
    if constexpr (kFew)
      add_up_lines<kSource>(args, call, token, share, shared.pairs[turn], &shared.masked);
    else
      add_up_row<kWire, kSource>(args, call, token, share, shared.pairs[turn], shared.partial[turn], &shared.masked);
  }
  if (block != 0) return;
  finish_combine(exchange, call);
}

// kFew: this rank's dispatch said that it wants its rows in lines.
template <CombineWire kWire, PartialSource kSource, bool kFew>
__global__ void __launch_bounds__(kMaxThreads, kFew || kWire == CombineWire::f64 ? 1 : 2)
    combine_latency(const MIXLANE_GRID_CONSTANT CombineKernelArgs args) {
  __shared__ CombineShared shared;
  begin_launch(args);
  const Call call = open_call<ExchangeStage::combine>(args.exchange);
  if (blockIdx.x < args.num_send_blocks)
    send_partials<kWire, kSource, kFew>(args, call, shared);
  else
    add_up<kWire, kSource, kFew>(args, call, shared);
  if (call.ended && blockIdx.x == 0 && threadIdx.x == 0) report_end(args.exchange);
}

}  // namespace mixlane::exchange_gpu
