// A block's share of a dispatch: its tokens' rows, as they are or quantised on the way, into the receivers' windows.
#pragma once

#include "ops/dispatch/slots.cuh"
#include "ops/quant/encode.cuh"

namespace mixlane::exchange_gpu {

// 16-byte packets of a row that a thread has on their way at once.
inline constexpr uint32_t kHeld = 2;

struct SendShared {
  uint32_t before[kMaxWaves][kMaxRanks];
  uint32_t largest[kWave];  // magnitude of each row of a batch, as bits
  uint32_t masked;
};

// Where a row goes: bit and slot per rank, the same in all lanes.
struct Destinations {
  uint32_t ranks;
  int32_t slot[kMaxRanks];
};

__device__ inline Destinations destinations_of(const Slots& slots, uint32_t row) {
  Destinations to;
  to.ranks = HardwareWave::shuffle(slots.ranks, static_cast<int>(row));
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r) to.slot[r] = HardwareWave::shuffle(slots.slot[r], static_cast<int>(row));
  return to;
}

// Calls body(record) for each destination, the own rank last: nobody waits for it.
template <class Body>
__device__ void for_each_destination(const Window& window, const Destinations& to, Body&& body) {
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r)
    if (r != window.rank && (to.ranks >> r & 1u) != 0) body(record_at(window, r, window.rank, to.slot[r]));
  if ((to.ranks >> window.rank & 1u) == 0) return;
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r)
    if (r == window.rank) body(record_at(window, r, r, to.slot[r]));
}

template <Payload kPayload>
class RowSender {
 public:
  __device__ RowSender(const DispatchKernelArgs& args, const Share& share, float* scales, SendShared& shared)
      : args_(args), share_(share), scales_(scales), shared_(shared) {
    // Groups of 128 values stay whole.
    const uint32_t unit = kPayload == Payload::copy ? 1 : kGroupPackets;
    first_packet_ = share.first_of(args.num_packets / unit) * unit;
    end_packet_ = share.end_of(args.num_packets / unit) * unit;
  }

  // Before the destinations are known.
  __device__ void fetch_first() {
    token_ = share_.begin;
    packet_ = first_packet_;
    fetch();
  }

  // The rows [first, end), whose slots are given; all threads of the block.
  __device__ void send(const Slots& slots, uint32_t first, uint32_t end) {
    if constexpr (kPayload == Payload::quantize_row) find_largest(first, end);
    for (uint32_t token = first; token < end; ++token) {
      const Destinations to = destinations_of(slots, token - first);
      if constexpr (kPayload == Payload::quantize_row)
        row_scale_ = quant_gpu::E4m3Scale(shared_.largest[token - first]).value();
      for (uint32_t packet = first_packet_; packet < end_packet_; packet += kHeld * blockDim.x) store(to, token, packet);
      if constexpr (kPayload == Payload::quantize_1x128) __syncthreads();  // the row's scales are complete
      if (HardwareWave::index_in_block() + 1 == blockDim.x / kWave) store_tail(to, token);
    }
  }

 private:
  static constexpr uint32_t kGroupPackets = 16;
  using Octet = gpu::Octet<DType::bf16>;

  __device__ void fetch() {
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i) held_[i] = load(token_, packet_ + i * blockDim.x + threadIdx.x);
  }

  __device__ uint4 load(uint32_t token, uint32_t packet) const {
    if (packet >= end_packet_ || token >= share_.end) return make_uint4(0, 0, 0, 0);
    // The last group of 128 values may be shorter than its packets.
    if (kPayload != Payload::copy && packet * gpu::kOctet >= args_.num_values) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(args_.hidden.data + token * args_.hidden.stride + int64_t{packet} * 16);
  }

  // What is held goes out; what comes next is fetched before.
  __device__ void store(const Destinations& to, uint32_t token, uint32_t packet) {
    uint4 now[kHeld];
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i) now[i] = held_[i];
    packet_ = packet + kHeld * blockDim.x;
    if (packet_ >= end_packet_) {
      packet_ = first_packet_;
      ++token_;
    }
    fetch();
    if constexpr (kPayload == Payload::copy) {
      for_each_destination(args_.exchange.window, to, [&](std::byte* record) {
#pragma unroll
        for (uint32_t i = 0; i < kHeld; ++i) {
          const uint32_t at = packet + i * blockDim.x + threadIdx.x;
          if (at < end_packet_) *reinterpret_cast<uint4*>(record + int64_t{at} * 16) = now[i];
        }
      });
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kHeld; ++i) store_codes(to, token, packet + i * blockDim.x + threadIdx.x, now[i]);
    }
  }

  __device__ void store_codes(const Destinations& to, uint32_t token, uint32_t packet, const uint4& values) {
    const Octet octet{{values.x, values.y, values.z, values.w}};
    uint2 codes;
    if constexpr (kPayload == Payload::quantize_1x128) {
      const quant_gpu::E4m3Scale scale(gpu::wave_max<kGroupPackets>(quant_gpu::E4m3Scale::magnitude(octet)));
      codes = scale.encode(octet);
      // Two rows' scales: the tail of the one before may still be read.
      if (packet < end_packet_ && packet % kGroupPackets == 0)
        scales_[(token & 1u) * args_.num_scales + packet / kGroupPackets] = scale.value();
    } else {
      codes = quant_gpu::E4m3Scale(shared_.largest[row_in_batch(token)]).encode(octet);
    }
    if (packet >= end_packet_ || packet * gpu::kOctet >= args_.num_values) return;
    for_each_destination(args_.exchange.window, to,
                         [&](std::byte* record) { *reinterpret_cast<uint2*>(record + int64_t{packet} * 8) = codes; });
  }

  __device__ uint32_t row_in_batch(uint32_t token) const { return (token - share_.begin) % kWave; }

  // A wave per row.
  __device__ void find_largest(uint32_t first, uint32_t end) {
    __syncthreads();  // the batch before has been sent
    for (uint32_t token = first + HardwareWave::index_in_block(); token < end; token += blockDim.x / kWave) {
      uint32_t largest = 0;
      for (uint32_t at = HardwareWave::lane() * gpu::kOctet; at < args_.num_values; at += kWave * gpu::kOctet) {
        const uint4 v = *reinterpret_cast<const uint4*>(args_.hidden.data + token * args_.hidden.stride + int64_t{at} * 2);
        largest = max(largest, quant_gpu::E4m3Scale::magnitude(Octet{{v.x, v.y, v.z, v.w}}));
      }
      shared_.largest[row_in_batch(token)] = gpu::wave_max<gpu::kHardwareWave>(largest);
    }
    __syncthreads();
  }

  // What follows the payload: scales, ids, weights. One wave; the words of neighbouring lanes make one transfer.
  __device__ void store_tail(const Destinations& to, uint32_t token) const {
    const uint32_t num_scales = args_.num_scales, num_topk = args_.num_topk;
    uint32_t begin = share_.last_part() ? 0 : num_scales;
    uint32_t end = share_.last_part() ? num_scales + 2 * num_topk : num_scales;
    if constexpr (kPayload == Payload::quantize_1x128) {
      begin = first_packet_ / kGroupPackets;
      if (!share_.last_part()) end = end_packet_ / kGroupPackets;
    }
    for (uint32_t word = begin + HardwareWave::lane(); word < end; word += kWave) {
      const uint32_t value = tail_word(token, word);
      for_each_destination(args_.exchange.window, to, [&](std::byte* record) {
        reinterpret_cast<uint32_t*>(record + args_.payload_bytes)[word] = value;
      });
    }
  }

  __device__ uint32_t tail_word(uint32_t token, uint32_t word) const {
    const uint32_t num_scales = args_.num_scales, num_topk = args_.num_topk;
    if (word < num_scales) {
      if constexpr (kPayload == Payload::quantize_1x128) return __float_as_uint(scales_[(token & 1u) * num_scales + word]);
      if constexpr (kPayload == Payload::quantize_row) return __float_as_uint(row_scale_);
      return __float_as_uint(args_.scales[token * args_.scale_row_stride + word * args_.scale_col_stride]);
    }
    word -= num_scales;
    const int64_t pair = int64_t{token} * num_topk;
    if (word >= num_topk) return __float_as_uint(args_.weights[pair + word - num_topk]);
    const int32_t id = args_.ids[pair + word];
    return static_cast<uint32_t>(id) < args_.owners.num_experts ? static_cast<uint32_t>(id) : ~0u;
  }

  const DispatchKernelArgs& args_;
  const Share& share_;
  float* scales_;
  SendShared& shared_;
  uint32_t first_packet_;
  uint32_t end_packet_;
  uint32_t token_ = 0;  // of what is held
  uint32_t packet_ = 0;
  uint4 held_[kHeld];
  float row_scale_ = 0;
};

// The slots of the lanes' tokens, for combine.
__device__ inline void keep_slots(const DispatchKernelArgs& args, const Slots& slots, uint32_t first, uint32_t end) {
  const uint32_t token = first + HardwareWave::lane();
  if (HardwareWave::index_in_block() != 0 || token >= end) return;
  const int num_ranks = args.exchange.window.num_ranks;
  int32_t* const kept = args.exchange.routing.slots + int64_t{token} * num_ranks;
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r)
    if (r < num_ranks) kept[r] = slots.slot[r];
}

// All threads of the block. `scales`: two rows of them, quantize_1x128 only.
template <Payload kPayload>
__device__ void send_share(const DispatchKernelArgs& args, Call call, const Share& share, float* scales,
                           SendShared& shared) {
  const Window& window = args.exchange.window;
  const uint32_t peer = threadIdx.x;
  const bool to_peer = peer < static_cast<uint32_t>(window.num_ranks) && static_cast<int>(peer) != window.rank;
  RowSender<kPayload> sender(args, share, scales, shared);
  sender.fetch_first();
  if (call.needs_credits) exchange_credits(args.exchange, call, &shared.masked);
  const uint64_t stamp = uint64_t{call.epoch} << 32;
  if (blockIdx.x == 0 && to_peer && call.sends_to(static_cast<int>(peer)))
    gpu::store_relaxed_system(&source_line(window, static_cast<int>(peer), window.rank)->dispatch_header,
                              stamp | share.num_active);
  if (share.empty()) return;
  be_late(args.exchange, call.number);

  Slots slots;
  count_tokens_before(args, share.begin, shared.before, slots);
  for (uint32_t first = share.begin; first < share.end; first += kWave) {
    const uint32_t end = min(first + kWave, share.end);
    take_slots(args, call, first, end, slots);
    sender.send(slots, first, end);
    if (share.part == 0) keep_slots(args, slots, first, end);
  }
  be_late(args.exchange, ~call.number);

  __syncthreads();
  uint32_t rows = 0;
#pragma unroll
  for (uint32_t r = 0; r < kMaxRanks; ++r)
    if (r == peer) rows = min(slots.next[r], static_cast<uint32_t>(window.capacity));
  if (to_peer && call.sends_to(static_cast<int>(peer)))
    gpu::store_release_system(done_flags(window, static_cast<int>(peer), window.rank) + blockIdx.x, stamp | rows);
}

}  // namespace mixlane::exchange_gpu
