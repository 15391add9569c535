// Partial sums of few rows in lines that carry their own flag: 12 bytes of a row and the epoch, written and read in one
// piece. No store has to be known to have arrived before a flag can follow, which saves a way across the link; the price
// is a third more bytes.
#pragma once

#include "ops/dispatch/partials.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kValuesPerWord = 2;  // bf16

__device__ inline gpu::Packet* lines_of(const Window& window, int owner, int source, int slot) {
  return reinterpret_cast<gpu::Packet*>(window.parts[owner] + window.lines_at +
                                        (int64_t{source} * window.few_rows + slot) * window.line_stride);
}
__device__ inline uint32_t num_lines(const CombineKernelArgs& args) {
  return (args.num_octets * (gpu::kOctet / kValuesPerWord) + kLineWords - 1) / kLineWords;
}

// A line's words of a row, two bf16 values each; zeros behind its end.
struct LineWords {
  uint32_t words[kLineWords] = {};
  uint32_t begin = 0;
  uint32_t count = 0;  // of the row's

  LineWords() = default;
  __device__ LineWords(const CombineKernelArgs& args, uint32_t line) {
    const uint32_t total = args.num_octets * (gpu::kOctet / kValuesPerWord);
    begin = line * kLineWords;
    count = begin < total ? min(total - begin, kLineWords) : 0;
  }
  __device__ void load(const std::byte* row) {
#pragma unroll
    for (uint32_t i = 0; i < kLineWords; ++i)
      if (i < count) words[i] = reinterpret_cast<const uint32_t*>(row)[begin + i];
  }
  __device__ float value(uint32_t v) const {
    return __uint_as_float(v % 2 ? words[v / 2] & 0xffff0000u : words[v / 2] << 16);
  }
};

// What this rank adds for a received row.
template <PartialSource kSource>
__device__ void load_local(const CombineKernelArgs& args, const PairList& list, int64_t row, LineWords& line) {
  constexpr uint32_t kValues = kLineWords * kValuesPerWord;
  if constexpr (kSource == PartialSource::reduced_bf16) {
    line.load(args.rows.data + row * args.rows.stride);
  } else {
    float sums[kValues] = {};
    if constexpr (kSource == PartialSource::reduced_f32) {
      const auto* const from = reinterpret_cast<const float2*>(args.rows.data + row * args.rows.stride);
#pragma unroll
      for (uint32_t i = 0; i < kLineWords; ++i) {
        if (i >= line.count) break;
        const float2 two = from[line.begin + i];
        sums[2 * i] = two.x;
        sums[2 * i + 1] = two.y;
      }
    } else {
      constexpr uint32_t kTogether = 4;
      for (uint32_t first = 0; first < list.count; first += kTogether) {
        LineWords rows[kTogether] = {line, line, line, line};
#pragma unroll
        for (uint32_t p = 0; p < kTogether; ++p)
          if (first + p < list.count) rows[p].load(args.rows.data + list.row[first + p] * args.rows.stride);
#pragma unroll
        for (uint32_t p = 0; p < kTogether; ++p) {
          if (first + p >= list.count) break;
#pragma unroll
          for (uint32_t v = 0; v < kValues; ++v) sums[v] += list.weight[first + p] * rows[p].value(v);
        }
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kLineWords; ++i) line.words[i] = gpu::f32x2_to_bf16x2(sums[2 * i], sums[2 * i + 1]);
  }
}

// The thread's line of the part of a row that the block is likely to send first: rows of the next rank come first.
__device__ inline int guessed_owner(const Window& window) {
  return window.rank + 1 == window.num_ranks ? 0 : window.rank + 1;
}
template <PartialSource kSource>
__device__ LineWords guess_line(const CombineKernelArgs& args) {
  const Window& window = args.exchange.window;
  Share share;
  share.log2_parts = kLog2RowParts;
  share.part = blockIdx.x % kRowParts;
  const uint32_t at = share.first_of(num_lines(args)) + threadIdx.x, slot = blockIdx.x / kRowParts;
  LineWords line(args, at);
  if (at < share.end_of(num_lines(args)) && slot < static_cast<uint32_t>(window.capacity))
    load_local<kSource>(args, PairList{}, int64_t{guessed_owner(window)} * window.capacity + slot, line);
  return line;
}

// A part of a row; threads [0, num_threads) of the block. `first`: the thread's first line if it is there already.
template <PartialSource kSource>
__device__ void send_lines(const CombineKernelArgs& args, uint32_t epoch, const PairList& list, int owner, int slot,
                           const Share& share, uint32_t num_threads, const LineWords* first) {
  const Window& window = args.exchange.window;
  gpu::Packet* const to = lines_of(window, owner, window.rank, slot);
  const uint32_t end = share.end_of(num_lines(args));
#pragma unroll 1
  for (uint32_t at = share.first_of(num_lines(args)) + threadIdx.x; at < end; at += num_threads) {
    LineWords line(args, at);
    if (first != nullptr)
      line = *first;
    else
      load_local<kSource>(args, list, int64_t{owner} * window.capacity + slot, line);
    first = nullptr;
    gpu::store_packet_system(to + at, {{line.words[0], line.words[1], line.words[2], epoch}});
  }
}

__device__ inline void store_line(const CombineKernelArgs& args, uint32_t token, const LineWords& line,
                                  const float (&sums)[kLineWords * kValuesPerWord]) {
  std::byte* const row = args.output + token * args.output_stride;
#pragma unroll
  for (uint32_t i = 0; i < kLineWords; ++i) {
    if (i >= line.count) break;
    const float low = sums[2 * i], high = sums[2 * i + 1];
    if (args.output_dtype == DType::bf16)
      reinterpret_cast<uint32_t*>(row)[line.begin + i] = gpu::f32x2_to_bf16x2(low, high);
    else
      reinterpret_cast<float2*>(row)[line.begin + i] = make_float2(low, high);
  }
}

__device__ inline void add_addend(const CombineKernelArgs& args, uint32_t token, const LineWords& line,
                                  float (&sums)[kLineWords * kValuesPerWord]) {
  const std::byte* const row = args.addend.data + token * args.addend.stride;
  LineWords values = line;
  if (args.addend_dtype == DType::bf16) values.load(row);
#pragma unroll
  for (uint32_t v = 0; v < kLineWords * kValuesPerWord; ++v) {
    if (v / kValuesPerWord >= line.count) break;
    sums[v] += args.addend_dtype == DType::bf16 ? values.value(v)
                                                : reinterpret_cast<const float*>(row)[line.begin * kValuesPerWord + v];
  }
}

// One token, or a part of it; all threads of the block.
template <PartialSource kSource>
__device__ void add_up_lines(const CombineKernelArgs& args, const Call& call, uint32_t token, const Share& share,
                             PairList& list, uint32_t* shared_masked) {
  const Window& window = args.exchange.window;
  const int rank = static_cast<int>(HardwareWave::lane());
  // Lane r: the row's slot in rank r.
  const int slot = rank < window.num_ranks ? args.exchange.routing.slots[int64_t{token} * window.num_ranks + rank] : -1;
  const int own_slot = HardwareWave::shuffle(slot, window.rank);
  if constexpr (kSource == PartialSource::pairs) {
    if (own_slot >= 0 && HardwareWave::index_in_block() == 0) list_pairs(args, window.rank, own_slot, list);
    __syncthreads();
  }
  const uint32_t end = share.end_of(num_lines(args));
#pragma unroll 1
  for (uint32_t first = share.first_of(num_lines(args)); first < end; first += blockDim.x) {
    const uint32_t at = min(first + threadIdx.x, end - 1);  // the last one by several threads
    LineWords own(args, at);
    if (own_slot >= 0) load_local<kSource>(args, list, int64_t{window.rank} * window.capacity + own_slot, own);
    float sums[kLineWords * kValuesPerWord];
    bool late = false;
    do {  // again without the ranks that turn out to be late
      late = false;
      const uint32_t masked = *static_cast<volatile uint32_t*>(shared_masked);
#pragma unroll
      for (float& sum : sums) sum = 0;
#pragma unroll 1
      for (int r = 0; r < window.num_ranks; ++r) {
        const int from = HardwareWave::shuffle(slot, r);
        if (from < 0 || (masked >> r & 1u) != 0) continue;
        LineWords line = own;
        if (r != window.rank) {
          gpu::Packet packet;
          const gpu::Packet* const source = lines_of(window, window.rank, r, from) + at;
          const bool here = wait_for(
              args.exchange, r, call.epoch,
              [&] {
                packet = gpu::load_packet_system(source);
                return packet.words[kLineWords];
              },
              [&](uint32_t stamp) { return stamp == call.epoch; });
          if (!here) atomicOr(shared_masked, 1u << r);
          late |= !here;
#pragma unroll
          for (uint32_t i = 0; i < kLineWords; ++i) line.words[i] = packet.words[i];
        }
#pragma unroll
        for (uint32_t v = 0; v < kLineWords * kValuesPerWord; ++v) sums[v] += line.value(v);
      }
    } while (__syncthreads_or(late) != 0);
    if (args.addend.data) add_addend(args, token, own, sums);
    store_line(args, token, own, sums);
  }
}

}  // namespace mixlane::exchange_gpu
