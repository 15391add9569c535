// A block's share of a dispatch: its tokens' rows, as they are or quantised on the way, into the receivers' windows.
#pragma once

#include "ops/dispatch/latency/block_slots.cuh"
#include "ops/quant/encode.cuh"

namespace mixlane::exchange_gpu {

// 32 words each of what follows a row's payload that a wave has fetched before they are sent: for fp8 rows of 8192 values.
inline constexpr uint32_t kHeldTails = 3;

struct SendShared {
  union {
    SlotsShared slots;
    HardwareWave::Mask having[kMaxWaves][kMaxRanks];  // send_one_row: each wave's tokens that go to a rank
  };
  uint32_t largest[kWave];  // magnitude of each row of a batch, as bits
  uint32_t masked;
};

// Four scales that are bytes.
__device__ inline uint32_t byte_scales(const DispatchKernelArgs& args, uint32_t token, uint32_t word) {
  const auto* const row = static_cast<const uint8_t*>(args.scales) + token * args.scale_row_stride;
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < 4; ++i)
    if (4 * word + i < args.num_byte_scales) bytes |= static_cast<uint32_t>(row[4 * word + i]) << (8 * i);
  return bytes;
}

// A word of what follows the payload, made by the caller: scales of quantised input, ids, weights. As it is, so that nothing
// waits for it that is not to be sent yet; scales not where they are bytes.
__device__ inline uint32_t fetch_tail_word(const DispatchKernelArgs& args, uint32_t token, uint32_t word) {
  const uint32_t num_scales = args.num_scale_words, num_topk = args.num_topk;
  const auto* from = reinterpret_cast<const uint32_t*>(args.ids) + int64_t{token} * num_topk + (word - num_scales);
  if (word >= num_scales + num_topk)
    from = reinterpret_cast<const uint32_t*>(args.weights) + int64_t{token} * num_topk + (word - num_scales - num_topk);
  if (word < num_scales)
    from = static_cast<const uint32_t*>(args.scales) + token * args.scale_row_stride + word * args.scale_col_stride;
  return *from;
}
// As it is sent: an id that is none as -1.
__device__ inline uint32_t checked_word(const DispatchKernelArgs& args, uint32_t word, uint32_t value) {
  const bool is_id = word - args.num_scale_words < args.num_topk;
  return is_id && value >= args.owners.num_experts ? ~0u : value;
}
__device__ inline uint32_t tail_word(const DispatchKernelArgs& args, uint32_t token, uint32_t word) {
  if (args.num_byte_scales != 0 && word < args.num_scale_words) return byte_scales(args, token, word);
  return checked_word(args, word, fetch_tail_word(args, token, word));
}

// `kHeld`: 16-byte packets of a row that a thread has on their way at once.
template <Payload kPayload, uint32_t kHeld>
class RowSender {
 public:
  static constexpr bool kCopies = kPayload == Payload::copy;

  // `scales`: 2 * args.scale_rows rows of them, kMakesScaleRows only.
  __device__ RowSender(const DispatchKernelArgs& args, const Share& share, float* scales, SendShared& shared)
      : args_(args), share_(share), scales_(scales), shared_(shared) {
    // Groups of 128 values stay whole: they have one scale, or a word of four.
    const uint32_t unit = kPayload == Payload::copy ? 1 : kGroupPackets;
    first_packet_ = share.first_of(args.num_packets / unit) * unit;
    end_packet_ = share.end_of(args.num_packets / unit) * unit;
    tail_begin_ = share.last_part() ? 0 : args.num_scale_words;
    tail_end_ = share.last_part() ? args.num_scale_words + 2 * args.num_topk : args.num_scale_words;
    if constexpr (kMakesScaleRows) {
      tail_begin_ = first_packet_ / kGroupPackets;
      if (!share.last_part()) tail_end_ = end_packet_ / kGroupPackets;
    }
  }

  // A part of a record that goes as it is: these packets of it, the last ones of which are the tail's.
  __device__ void cover(uint32_t first, uint32_t end) {
    const uint32_t num_packets = args_.num_packets, num_words = args_.num_scale_words + 2 * args_.num_topk;
    first_packet_ = min(first, num_packets);
    end_packet_ = min(end, num_packets);
    tail_begin_ = min((first - first_packet_) * 4, num_words);
    tail_end_ = min((end - end_packet_) * 4, num_words);
  }

  // Before the destinations are known.
  __device__ void fetch_first() {
    token_ = share_.begin;
    packet_ = first_packet_;
    fetch();
  }
  // When nothing is waited for any more that was asked for before.
  __device__ void fetch_first_tail() { fetch_tail(first_tail(share_.begin), share_.end); }

  // The rows [first, end) of the batch, whose records `targets_of(row)` has; all threads of the block.
  template <class TargetsOf>
  __device__ void send(uint32_t first, uint32_t end, TargetsOf&& targets_of) {
    if constexpr (kPayload == Payload::quantize_row) find_largest(first, end);
    if constexpr (kMakesScaleRows) {
#pragma unroll 1
      for (uint32_t group = first; group < end; group += args_.scale_rows)
        send_group(first, group, min(group + args_.scale_rows, end), targets_of);
    } else {
#pragma unroll 1
      for (uint32_t token = first; token < end; ++token) {
        const auto targets = targets_of(token - first);
        send_payload(targets, token - first, token);
        if (token != tail_token_) continue;
        store_tail(targets, token - first);
        fetch_tail(token + blockDim.x / kWave, share_.end);
      }
    }
  }

  // The block's only row.
  template <class Targets>
  __device__ void send_one(const Targets& targets) {
    const uint32_t token = share_.begin;
    if constexpr (kPayload == Payload::quantize_row) find_largest(token, share_.end);
    send_payload(targets, 0, token);
    if constexpr (kMakesScaleRows) __syncthreads();  // the scales are complete
    if (token == tail_token_) store_tail(targets, 0);
  }

 private:
  static constexpr uint32_t kGroupPackets = 16;
  static constexpr uint32_t kPerStore = kPayload == Payload::copy ? 1 : 2;  // packets
  // Of a packet on the wire.
  static constexpr uint32_t kWireBytes = kPayload == Payload::copy ? 16 : kPayload == Payload::quantize_1x32 ? 4 : 8;
  static constexpr bool kMakesScaleRows = makes_scale_rows(kPayload);
  using Octet = gpu::Octet<DType::bf16>;

  // Rows that share a barrier: behind it their scales are complete. A wave sends a row's tail while the next rows' scales
  // go to the other half of the memory for them.
  template <class TargetsOf>
  __device__ void send_group(uint32_t first, uint32_t begin, uint32_t end, TargetsOf& targets_of) {
    if (begin != share_.begin) fetch_tail(first_tail(begin), end);
#pragma unroll 1
    for (uint32_t token = begin; token < end; ++token) send_payload(targets_of(token - first), token - first, token);
    __syncthreads();
    for (uint32_t token = first_tail(begin); token < end; token += blockDim.x / kWave) {
      if (token != tail_token_) fetch_tail(token, end);
      store_tail(targets_of(token - first), token - first);
    }
  }

  template <class Targets>
  __device__ void send_payload(const Targets& targets, uint32_t row, uint32_t token) {
#pragma unroll 1
    for (uint32_t packet = first_packet_; packet < end_packet_; packet += kHeld * blockDim.x)
      store(targets, row, token, packet);
  }

  // Which packet of those from `packet` on. Quantised, a thread has two neighbours: their codes are one store.
  __device__ static uint32_t held_at(uint32_t packet, uint32_t i) {
    return packet + (kCopies ? threadIdx.x : threadIdx.x * 2) + held_apart(i);
  }
  // From packet held_at(packet, 0) to held_at(packet, i).
  __device__ static uint32_t held_apart(uint32_t i) { return kCopies ? i * blockDim.x : i / 2 * blockDim.x * 2 + i % 2; }
  __device__ bool there(uint32_t packet) const {
    // The last group of 128 values may be shorter than its packets.
    return packet < end_packet_ && (kCopies || packet * gpu::kOctet < args_.num_values);
  }
  __device__ void fetch() {
    const uint32_t at = held_at(packet_, 0);
    const std::byte* const from = args_.hidden.data + token_ * args_.hidden.stride + int64_t{at} * 16;
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i) {
      held_[i] = gpu::load_if(token_ < share_.end && there(at + held_apart(i)), from + held_apart(i) * 16,
                              kCopies ? held_[i] : uint4{});
    }
  }

  // What is held goes out; what comes next is fetched before.
  template <class Targets>
  __device__ void store(const Targets& targets, uint32_t row, uint32_t token, uint32_t packet) {
    uint4 now[kHeld];
#pragma unroll
    for (uint32_t i = 0; i < kHeld; ++i) now[i] = held_[i];
    packet_ = packet + kHeld * blockDim.x;
    if (packet_ >= end_packet_) {
      packet_ = first_packet_;
      ++token_;
    }
    if (token_ < share_.end) fetch();
    if constexpr (!kCopies) {
#pragma unroll
      for (uint32_t i = 0; i < kHeld; i += 2) now[i / 2] = encode(row, token, held_at(packet, i), now[i], now[i + 1]);
    }
    const uint32_t at = held_at(packet, 0);
    targets.each([&](std::byte* record) {
      std::byte* const to = record + int64_t{at} * kWireBytes;
#pragma unroll
      for (uint32_t i = 0; i < kHeld / kPerStore; ++i) {
        const uint32_t apart = held_apart(i * kPerStore);
        if (!there(at + apart)) continue;
        if constexpr (kPayload == Payload::quantize_1x32)
          *reinterpret_cast<uint2*>(to + apart * kWireBytes) = make_uint2(now[i].x, now[i].y);
        else
          *reinterpret_cast<uint4*>(to + apart * kWireBytes) = now[i];
      }
    });
  }

  // Sixteen neighbouring values; eight lanes have a group of 128, two one of 32.
  __device__ uint4 encode(uint32_t row, uint32_t token, uint32_t packet, const uint4& low, const uint4& high) {
    const Octet first{{low.x, low.y, low.z, low.w}}, second{{high.x, high.y, high.z, high.w}};
    if constexpr (kPayload == Payload::quantize_1x32) {
      constexpr uint32_t kPackets = 4;
      using Scale = quant_gpu::E2m1Scale;
      const Scale scale(gpu::wave_max<kPackets / 2>(max(Scale::magnitude(first), Scale::magnitude(second))));
      if (packet < end_packet_ && packet % kPackets == 0) scale.store(scales_of(token), packet / kPackets);
      return make_uint4(scale.encode(first), scale.encode(second), 0, 0);
    }
    uint32_t magnitude = 0;
    if constexpr (kPayload == Payload::quantize_row)
      magnitude = shared_.largest[row];
    else
      magnitude = gpu::wave_max<kGroupPackets / 2>(
          max(quant_gpu::E4m3Scale::magnitude(first), quant_gpu::E4m3Scale::magnitude(second)));
    const quant_gpu::E4m3Scale scale(magnitude);
    if (kPayload == Payload::quantize_1x128 && packet < end_packet_ && packet % kGroupPackets == 0)
      scales_of(token)[packet / kGroupPackets] = scale.value();
    const uint2 front = scale.encode(first), back = scale.encode(second);
    return make_uint4(front.x, front.y, back.x, back.y);
  }

  // A wave per row.
  __device__ void find_largest(uint32_t first, uint32_t end) {
    for (uint32_t token = first + HardwareWave::index_in_block(); token < end; token += blockDim.x / kWave) {
      uint32_t largest = 0;
      for (uint32_t at = HardwareWave::lane() * gpu::kOctet; at < args_.num_values; at += kWave * gpu::kOctet) {
        const uint4 v = *reinterpret_cast<const uint4*>(args_.hidden.data + token * args_.hidden.stride + int64_t{at} * 2);
        largest = max(largest, quant_gpu::E4m3Scale::magnitude(Octet{{v.x, v.y, v.z, v.w}}));
      }
      shared_.largest[token - first] = gpu::wave_max<gpu::kHardwareWave>(largest);
    }
    __syncthreads();
  }

  // What follows the payload: scales, ids, weights. Waves take turns, and fetch the next words they are to send long before:
  // loads wait behind the stores that wait for the link. The words of neighbouring lanes make one transfer.
  // The first row of a wave from `begin` on.
  __device__ static uint32_t first_tail(uint32_t begin) {
    return begin + blockDim.x / kWave - 1 - HardwareWave::index_in_block();
  }
  __device__ void fetch_tail(uint32_t token, uint32_t end) {
    tail_token_ = token;
    if (token >= end || args_.num_byte_scales != 0) return;
#pragma unroll
    for (uint32_t i = 0; i < kHeldTails; ++i) {
      if (tail_begin_ + i * kWave >= tail_end_) return;
      const uint32_t word = tail_begin_ + i * kWave + HardwareWave::lane();
      if (word < tail_end_ && !in_shared(word)) held_tail_[i] = fetch_tail_word(args_, token, word);
    }
  }
  // Of the row `tail_token_`.
  template <class Targets>
  __device__ void store_tail(const Targets& targets, uint32_t row) const {
    const bool held = args_.num_byte_scales == 0;
#pragma unroll
    for (uint32_t i = 0; i < kHeldTails; ++i) {
      if (!held || tail_begin_ + i * kWave >= tail_end_) break;
      const uint32_t word = tail_begin_ + i * kWave + HardwareWave::lane();
      store_word(targets, word, in_shared(word) ? shared_word(row, word) : checked_word(args_, word, held_tail_[i]));
    }
#pragma unroll 1
    for (uint32_t first = tail_begin_ + (held ? kHeldTails * kWave : 0); first < tail_end_; first += kWave) {
      const uint32_t word = first + HardwareWave::lane();
      uint32_t value = 0;
      if (in_shared(word))
        value = shared_word(row, word);
      else if (word < tail_end_)
        value = tail_word(args_, tail_token_, word);
      store_word(targets, word, value);
    }
  }
  template <class Targets>
  __device__ void store_word(const Targets& targets, uint32_t word, uint32_t value) const {
    targets.each([&](std::byte* record) {
      if (word < tail_end_) reinterpret_cast<uint32_t*>(record + args_.payload_bytes)[word] = value;
    });
  }

  // Scales that this kernel makes.
  __device__ bool in_shared(uint32_t word) const { return kPayload != Payload::copy && word < args_.num_scale_words; }
  __device__ uint32_t shared_word(uint32_t row, uint32_t word) const {
    if constexpr (kPayload == Payload::quantize_row)
      return __float_as_uint(quant_gpu::E4m3Scale(shared_.largest[row]).value());
    return __float_as_uint(scales_of(tail_token_)[word]);
  }
  __device__ float* scales_of(uint32_t token) const {
    return scales_ + ((token - share_.begin) & (2 * args_.scale_rows - 1)) * args_.num_scale_words;
  }

  const DispatchKernelArgs& args_;
  const Share& share_;
  float* scales_;
  SendShared& shared_;
  uint32_t first_packet_;
  uint32_t end_packet_;
  uint32_t tail_begin_;
  uint32_t tail_end_;
  uint32_t token_ = 0;  // of what is held
  uint32_t packet_ = 0;
  uint4 held_[kHeld] = {};
  uint32_t tail_token_ = 0;  // the wave's next one
  uint32_t held_tail_[kHeldTails] = {};
};

__device__ inline void send_header(const DispatchKernelArgs& args, const Call& call, uint32_t count, int peer) {
  const Window& window = args.exchange.window;
  const bool wants_inbox = args.wants_inbox && (!args.inbox_by_count || *args.num_tokens <= window.inbox_rows);
  gpu::store_relaxed_system(&source_line(window, peer, window.rank)->dispatch_header,
                            uint64_t{call.epoch} << 32 | (wants_inbox ? kWantsInbox : 0) | count);
}

// Behind all that needs nothing of what the kernel before has made. The next kernel may start only now: were the kernel
// before still there, the next one's blocks would go where its blocks end first, and not evenly to all multiprocessors.
__device__ inline void wait_for_turn() {
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
}
__device__ inline void begin_sending(const DispatchKernelArgs& args) {
  wait_for_turn();
  stall_if_asked<ExchangeStage::dispatch>(args.exchange);
}

// All threads of the block. Everything that can be is fetched before the first result is looked at; first what the slots
// depend on.
template <class Sender>
__device__ void send_share(const DispatchKernelArgs& args, const Share& share, Sender& sender, SendShared& shared) {
  const Window& window = args.exchange.window;
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block();
  BlockSlots slots(args, share);
  begin_sending(args);
  slots.fetch();
  const CallWords words = fetch_call(args.exchange);
  sender.fetch_first();
  slots.look();
  Call call = open_call<ExchangeStage::dispatch>(words);
  slots.count(shared.slots);
  sender.fetch_first_tail();
  // The last wave talks to the peers.
  const bool to_peer =
      wave + 1 == blockDim.x / kWave && static_cast<int>(lane) < window.num_ranks && static_cast<int>(lane) != window.rank;
  if (call.needs_credits) call.masked = exchange_credits(args.exchange, call.number, call.masked, &shared.masked);
  const bool talks = to_peer && call.sends_to(static_cast<int>(lane));
  if (blockIdx.x == 0 && talks) send_header(args, call, share.num_active, static_cast<int>(lane));
  count_reader(args.exchange, call);  // a barrier as well: the counts are there
  if (share.empty()) return;
  be_late(args.exchange, call.number);
  slots.add_up(shared.slots, call);
#pragma unroll 1
  for (uint32_t first = share.begin; first < share.end; first += kWave) {
    if (first != share.begin) slots.next_batch(first, shared.slots);
    sender.send(first, min(first + kWave, share.end), [&](uint32_t row) { return slots.targets(row); });
    if (wave == 0 && share.part == 0) slots.keep(first);
  }
  be_late(args.exchange, ~call.number);

  __syncthreads();
  if (talks)
    gpu::store_release_system(done_flags(window, static_cast<int>(lane), window.rank) + blockIdx.x,
                              uint64_t{call.epoch} << 32 | slots.num_rows());
}

}  // namespace mixlane::exchange_gpu
