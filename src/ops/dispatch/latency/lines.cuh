// Records of few rows in lines of 128 bytes: 120 bytes of the record and the epoch. Eight lanes store a line by one
// instruction, it crosses the link as a whole, and eight lanes that load it by one instruction see all of it or nothing. So
// no store has to be known to have arrived before a flag can follow. The receiver copies the record to its place.
#pragma once

#include "ops/dispatch/gpu/call.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kLineLanes = 8, kPairLanes = 2 * kLineLanes;

// A lane's part of a pair of lines, which hold kPacketsOfPair packets of a record: seven each and one by halves.
struct LinePart {
  uint32_t packet;   // of the pair's
  bool half;         // the last lane of a line: half a packet and the epoch
  uint32_t at_half;  // which one
  __device__ LinePart() {
    const uint32_t lane = threadIdx.x % kPairLanes, line = lane / kLineLanes, in_line = lane % kLineLanes;
    half = in_line + 1 == kLineLanes;
    packet = half ? kPacketsOfPair - 1 : line * (kLineLanes - 1) + in_line;
    at_half = line;
  }
};

__device__ inline gpu::Packet* lines_of(const Window& window, int owner, int source, uint32_t slot) {
  return reinterpret_cast<gpu::Packet*>(window.parts[owner] + window.lines_at +
                                        (int64_t{source} * window.line_rows + slot) * window.line_stride);
}

// The pairs of lines [first, end) of a record, which lies at `record`, into an owner's lines. All threads of the block.
__device__ inline void store_lines(gpu::Packet* to, const std::byte* record, uint32_t first, uint32_t end, uint32_t epoch) {
  const LinePart part;
  for (uint32_t pair = first + threadIdx.x / kPairLanes; pair < end; pair += blockDim.x / kPairLanes) {
    const auto* const from = reinterpret_cast<const uint4*>(record) + pair * kPacketsOfPair + part.packet;
    const uint4 words = *from;
    gpu::Packet packet{{words.x, words.y, words.z, words.w}};
    if (part.half) packet = {{part.at_half == 0 ? words.x : words.z, part.at_half == 0 ? words.y : words.w, epoch, epoch}};
    gpu::store_packet_system(to + pair * kPairLanes + threadIdx.x % kPairLanes, packet);
  }
}

// What of the rows in lines a block copies to their places: units are rows, or parts of them.
struct UnpackShare {
  uint32_t first = 0;
  uint32_t step = 1;
  uint32_t log2_parts = 0;
};

// A source's header of this call, once it is there: whether it sends lines, and how many rows.
__device__ inline bool sends_lines(uint64_t header) { return (header & kInLines) != 0; }
__device__ inline uint32_t num_sent(uint64_t header) { return static_cast<uint32_t>(header) & ~(kWantsInbox | kInLines); }

// Copies lines of one record, those pairs from `first` on that are before `end`, to its place: the wave's next kLinesHeld
// ones, a block's width apart. False if the source sends no such row, or is left out (`left_out`). Whole waves.
inline constexpr uint32_t kLinesHeld = 3;
__device__ inline bool unpack_lines(const Exchange& exchange, uint32_t epoch, int source, uint32_t slot, uint32_t first,
                                    uint32_t end, bool& left_out) {
  const Window& window = exchange.window;
  const LinePart part;
  const uint32_t step = blockDim.x / kPairLanes, lane = threadIdx.x % kPairLanes;
  const gpu::Packet* const lines = lines_of(window, window.rank, source, slot);
  const uint64_t* const header_at = &source_line(window, window.rank, source)->dispatch_header;
  gpu::Packet packets[kLinesHeld];
  uint64_t since = 0;
  for (uint32_t looks = 1;; ++looks) {
    bool here = true;
#pragma unroll
    for (uint32_t i = 0; i < kLinesHeld; ++i)
      if (const uint32_t pair = first + i * step; pair < end)
        packets[i] = gpu::load_packet_system(lines + pair * kPairLanes + lane);
    const uint64_t header = gpu::load_relaxed_system(header_at);
#pragma unroll
    for (uint32_t i = 0; i < kLinesHeld; ++i)
      if (part.half && first + i * step < end) here &= packets[i].words[2] == epoch;
    if (HardwareWave::ballot(!here) == 0) break;
    const bool ends = header >> 32 == epoch && (!sends_lines(header) || slot >= num_sent(header));
    if (HardwareWave::ballot(ends) != 0) return false;
    if (looks % 64 != 0) continue;
    int goes_on = 1;
    if (HardwareWave::lane() == 0)
      goes_on = keep_waiting(exchange, source, epoch, static_cast<uint32_t>(header >> 32), since);
    if (HardwareWave::shuffle(goes_on, 0) != 0) continue;
    left_out = true;
    return false;
  }
  std::byte* const record = record_at(window, window.rank, source, static_cast<int>(slot));
#pragma unroll
  for (uint32_t i = 0; i < kLinesHeld; ++i) {
    const uint32_t pair = first + i * step, packet = pair * kPacketsOfPair + part.packet;
    if (pair >= end || packet >= window.record_packets) continue;
    const gpu::Packet& from = packets[i];
    std::byte* const to = record + int64_t{packet} * 16;
    if (part.half)
      reinterpret_cast<uint2*>(to)[part.at_half] = make_uint2(from.words[0], from.words[1]);
    else
      gpu::store_packet(to, from);
  }
  return true;
}

// This block's share of the rows that `source` sends in lines, as they come, until its header tells that there are no more.
// All threads of the block; false if the source is left out.
__device__ inline bool unpack_rows(const Exchange& exchange, uint32_t epoch, int source, const UnpackShare& share) {
  const Window& window = exchange.window;
  Share row;
  row.log2_parts = share.log2_parts;
  bool left_out = false;
#pragma unroll 1
  for (uint32_t unit = share.first; unit >> share.log2_parts < static_cast<uint32_t>(window.line_rows); unit += share.step) {
    row.part = unit & ((1u << share.log2_parts) - 1);
    const uint32_t end = row.end_of(window.line_pairs), step = blockDim.x / kPairLanes;
#pragma unroll 1
    for (uint32_t first = row.first_of(window.line_pairs); first < end; first += kLinesHeld * step)
      if (!unpack_lines(exchange, epoch, source, unit >> share.log2_parts, first + threadIdx.x / kPairLanes, end, left_out))
        return !left_out;
  }
  return true;
}

}  // namespace mixlane::exchange_gpu
