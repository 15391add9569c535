// A block that sends one row, or a part of it, in lines: calls of so few tokens that a wave has a lane for each.
#pragma once

#include "ops/dispatch/lines.cuh"
#include "ops/dispatch/send_rows.cuh"

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

// Lane r's `to` of the i-th peer behind this rank.
__device__ inline gpu::Packet* lines_for_peer(const Window& window, unsigned long long to, int i) {
  const int r = window.rank + i < window.num_ranks ? window.rank + i : window.rank + i - window.num_ranks;
  return reinterpret_cast<gpu::Packet*>(HardwareWave::shuffle(to, r));
}

// Four words of what follows the payload. Few lanes need it, so its code is not in the others' way.
static __device__ __noinline__ gpu::Packet packet_of_tail(const DispatchKernelArgs& args, uint32_t token, uint32_t first) {
  const uint32_t num_words = args.num_scale_words + 2 * args.num_topk;
  gpu::Packet tail;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) tail.words[i] = first + i < num_words ? tail_word(args, token, first + i) : 0;
  return tail;
}

// A packet of the record of a row that goes as it is.
__device__ inline gpu::Packet packet_of_record(const DispatchKernelArgs& args, uint32_t token, uint32_t packet) {
  if (packet < args.num_packets) {
    const auto* const row = reinterpret_cast<const uint4*>(args.hidden.data + token * args.hidden.stride);
    const uint4 words = row[packet];
    return {{words.x, words.y, words.z, words.w}};
  }
  return packet_of_tail(args, token, (packet - args.num_packets) * 4);
}

// How a block sends one row, or a part of it, to the lines of its receivers. Made and begun before the destinations are
// known. All threads of the block; send()'s `to` is lane r's: lines for rank r, the own rank's record, null for none;
// `read`: a barrier.
template <Payload kPayload>
class LineSender {
 public:
  // What is quantised on the way is put together in shared memory, at `staged`; its scales lie behind.
  __device__ LineSender(const DispatchKernelArgs& args, const Share& share, std::byte* staged, SendShared& shared)
      : window_(args.exchange.window),
        staged_(staged),
        sender_(args, share, reinterpret_cast<float*>(staged + window_.line_pairs * kPacketsOfPair * 16), shared) {
    sender_.fetch_first();
  }
  template <class Read>
  __device__ void send(unsigned long long to, uint32_t epoch, Read&& read) {
    auto* const own = reinterpret_cast<std::byte*>(HardwareWave::shuffle(to, window_.rank));
    sender_.send_one(StagedTargets{staged_, own});
    read();
#pragma unroll 1
    for (int i = 1; i < window_.num_ranks; ++i)
      if (auto* const lines = lines_for_peer(window_, to, i); lines != nullptr)
        store_lines(lines, staged_, 0, window_.line_pairs, epoch);
  }

 private:
  const Window& window_;
  std::byte* staged_;
  RowSender<kPayload> sender_;
};

// What goes as it is need not be put together: each lane fetches what its parts of lines hold.
template <>
class LineSender<Payload::copy> {
 public:
  __device__ LineSender(const DispatchKernelArgs& args, const Share& share, std::byte*, SendShared&)
      : args_(args),
        token_(share.begin),
        pair_(share.first_of(args.exchange.window.line_pairs) + threadIdx.x / kPairLanes),
        end_(share.empty() ? 0 : share.end_of(args.exchange.window.line_pairs)) {
    fetch();
  }
  template <class Read>
  __device__ void send(unsigned long long to, uint32_t epoch, Read&& read) {
    const Window& window = args_.exchange.window;
    auto* const own = reinterpret_cast<std::byte*>(HardwareWave::shuffle(to, window.rank));
#pragma unroll 1
    while (HardwareWave::ballot(pair_ < end_) != 0) {
#pragma unroll 1
      for (int i = 1; i < window.num_ranks; ++i) {
        gpu::Packet* const lines = lines_for_peer(window, to, i);
        if (lines == nullptr) continue;
#pragma unroll
        for (uint32_t h = 0; h < kHeldPairs; ++h)
          if (const uint32_t pair = pair_ + h * step(); pair < end_) store_line(lines, pair, part_, held_[h], epoch);
      }
#pragma unroll
      for (uint32_t h = 0; h < kHeldPairs; ++h)
        if (own != nullptr && counts(h) && !(part_.half && part_.at_half != 0))
          gpu::store_packet(own + int64_t{packet_at(h)} * 16, held_[h]);
      pair_ += kHeldPairs * step();
      fetch();
    }
    read();
  }

 private:
  static constexpr uint32_t kHeldPairs = 2;
  __device__ static uint32_t step() { return blockDim.x / kPairLanes; }
  __device__ uint32_t packet_at(uint32_t h) const { return (pair_ + h * step()) * kPacketsOfPair + part_.packet; }
  __device__ bool counts(uint32_t h) const {
    return pair_ + h * step() < end_ && packet_at(h) < args_.exchange.window.record_packets;
  }
  __device__ void fetch() {
#pragma unroll
    for (uint32_t h = 0; h < kHeldPairs; ++h)
      held_[h] = counts(h) ? packet_of_record(args_, token_, packet_at(h)) : gpu::Packet{};
  }

  const DispatchKernelArgs& args_;
  LinePart part_;
  uint32_t token_;
  uint32_t pair_;  // the first one held
  uint32_t end_;
  gpu::Packet held_[kHeldPairs];
};

// A block's row. Every wave finds its slots for itself. All threads of the block.
static_assert(kLineRows <= static_cast<int>(kWave));
template <Payload kPayload>
__device__ void send_in_lines(const DispatchKernelArgs& args, const Share& share, std::byte* staged, SendShared& shared) {
  const Window& window = args.exchange.window;
  const uint32_t token = share.begin, lane = HardwareWave::lane();
  const int rank = static_cast<int>(lane);
  const FetchedToken fetched(args, lane, lane < share.end);
  LineSender<kPayload> sender(args, share, staged, shared);
  Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const HardwareWave::Mask having = tokens_by_rank(args, fetched.ranks(args));
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
  sender.send(to, call.epoch, [&] {
    be_late(args.exchange, ~call.number);
    count_reader(args.exchange, call);
  });
  if (HardwareWave::index_in_block() == 0 && share.part == 0 && rank < window.num_ranks)
    args.exchange.routing.slots[int64_t{token} * window.num_ranks + rank] = sent ? static_cast<int32_t>(slot) : -1;
}

}  // namespace mixlane::exchange_gpu
