// Writing the outputs. Every function is given its share as (first, step), so any number of blocks can divide the work.
// What few calls ask for is not inlined: small kernels wait for their instructions to arrive.
#pragma once

#include "ops/align/tile.cuh"

namespace mixlane::align_gpu {

__device__ __noinline__ inline void write_slot_extras(const KernelArgs& args, uint32_t slot, uint32_t pair) {
  const Outputs& out = args.out;
  const uint32_t row = gpu::divide(pair, args.source.by_topk);
  const uint32_t k = pair - row * args.source.num_topk;
  if (out.sorted_rows) out.sorted_rows[slot] = static_cast<int32_t>(row);
  if (out.sorted_packed) out.sorted_packed[slot] = static_cast<int32_t>(row | k << 24);
  if (out.sorted_weights) out.sorted_weights[slot] = out.weights[static_cast<int64_t>(row) * out.weight_stride + k];
}

__device__ inline void write_slot(const KernelArgs& args, uint32_t slot, uint32_t pair) {
  args.out.sorted_pairs[slot] = static_cast<int32_t>(pair);
  if (args.out.has_extras) write_slot_extras(args, slot, pair);
}

__device__ __noinline__ inline void write_pad_extras(const KernelArgs& args, uint32_t first, uint32_t end, uint32_t step) {
  const Outputs& out = args.out;
  for (uint32_t slot = first; slot < end; slot += step) {
    if (out.sorted_rows) out.sorted_rows[slot] = static_cast<int32_t>(args.source.num_rows);
    if (out.sorted_packed) out.sorted_packed[slot] = static_cast<int32_t>(args.source.num_rows | args.source.num_topk << 24);
    if (out.sorted_weights) out.sorted_weights[slot] = 0.0f;
  }
}

// This thread's share of the pads in slots first to end - 1. kStep: threads that share them.
template <uint32_t kStep>
__device__ void write_pads(const KernelArgs& args, uint32_t first, uint32_t end) {
  constexpr uint32_t kBatch = 4;
  int32_t* const pairs = args.out.sorted_pairs;
  const int32_t pad = args.out.pad_value;
#pragma unroll 1
  for (uint32_t slot = first; slot < end; slot += kBatch * kStep) {
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i)
      if (slot + i * kStep < end) pairs[slot + i * kStep] = pad;
  }
  if (args.out.has_extras) write_pad_extras(args, first, end, kStep);
}

// What a code's place alone tells: the pads behind its pairs and the entries of its blocks. A wave per code.
template <class Tile>
__device__ void write_code_places(const KernelArgs& args, const Tile& tile, uint32_t first_wave, uint32_t num_waves) {
  int32_t* const block_experts = tile.facts->has_long_code ? nullptr : args.out.block_experts;
  const int32_t first_code = args.source.bucket ? 1 : 0;
  const uint32_t lane = Tile::Wave::lane();
#pragma unroll 1
  for (uint32_t code = first_wave; code < args.num_codes; code += num_waves) {
    const uint32_t begin = tile.offsets[code];
    const uint32_t end = tile.offsets[code + 1];
    write_pads<Tile::kWave>(args, begin + tile.totals[code] + lane, end);
    const uint32_t block = gpu::divide(begin, args.by_block) + lane;
    if (block_experts && block < gpu::divide(end, args.by_block))
      block_experts[block] = static_cast<int32_t>(code) - first_code;
  }
}

// The last codes that start at or below the slots are those that hold them: empty codes start where the next one does.
template <int kCount>
__device__ void find_codes(const uint32_t* offsets, uint32_t num_codes, const uint32_t (&slots)[kCount],
                           uint32_t (&codes)[kCount]) {
#pragma unroll
  for (uint32_t& code : codes) code = 0;
#pragma unroll 1
  for (uint32_t size = num_codes; size > 1; size -= size / 2)
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (offsets[codes[i] + size / 2] <= slots[i]) codes[i] += size / 2;
}

__device__ __noinline__ inline void find_block_experts(const KernelArgs& args, const uint32_t* offsets, uint32_t num_used,
                                                       uint32_t first, uint32_t step) {
  constexpr uint32_t kBatch = 4;  // searches that hide each other's latency
  const int32_t first_code = args.source.bucket ? 1 : 0;
#pragma unroll 1
  for (uint32_t block = first; block < num_used; block += kBatch * step) {
    uint32_t slots[kBatch];
    uint32_t codes[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) slots[i] = (block + i * step) * args.by_block.divisor;
    find_codes(offsets, args.num_codes, slots, codes);
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i)
      if (block + i * step < num_used)
        args.out.block_experts[block + i * step] = static_cast<int32_t>(codes[i]) - first_code;
  }
}

// The entries of block_experts behind the last block.
template <class Tile>
__device__ void write_unused_block_experts(const KernelArgs& args, const Tile& tile, uint32_t first, uint32_t step) {
  const uint32_t num_used = gpu::divide(tile.offsets[args.num_codes], args.by_block);
#pragma unroll 1
  for (uint32_t block = num_used + first; block < args.out.num_blocks; block += step) args.out.block_experts[block] = -1;
}

// The entries of block_experts that no code's wave writes: those behind the last block, or all of them.
template <class Tile>
__device__ void write_other_block_experts(const KernelArgs& args, const Tile& tile, uint32_t first, uint32_t step) {
  write_unused_block_experts(args, tile, first, step);
  if (!tile.facts->has_long_code || !args.out.block_experts) return;
  find_block_experts(args, tile.offsets, gpu::divide(tile.offsets[args.num_codes], args.by_block), first, step);
}

// Counts, offsets and sums: by one block.
template <class Tile>
__device__ void write_summary(const KernelArgs& args, const Tile& tile) {
  const uint32_t first_code = args.source.bucket ? 1 : 0;
  const uint32_t num_groups = args.source.num_groups;
  if (threadIdx.x == 0) {
    args.out.num_padded[0] = static_cast<int32_t>(tile.offsets[args.num_codes]);
    args.out.num_padded[1] = static_cast<int32_t>(tile.facts->num_kept - (first_code ? tile.totals[0] : 0));
  }
  if (args.out.expert_counts)
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < num_groups; e += Tile::kThreads)
      args.out.expert_counts[e] = static_cast<int32_t>(tile.totals[e + first_code]);
  if (args.out.expert_offsets)
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e <= num_groups; e += Tile::kThreads)
      args.out.expert_offsets[e] = static_cast<int32_t>(tile.offsets[e + first_code]);
}

__device__ __noinline__ inline void record_faults(const KernelArgs& args, uint32_t count, uint32_t first_pair) {
  Status* const status = args.out.status;
  if (status->code == ErrorCode::bad_expert_id) {
    status->failures += static_cast<int32_t>(count);
  } else if (status->code == ErrorCode::ok) {
    status->code = ErrorCode::bad_expert_id;
    status->failures = static_cast<int32_t>(count);
    status->token = gpu::divide(first_pair, args.source.by_topk);
    status->expected = args.source.num_experts;
    status->got = read_wide_id(args.source, first_pair);
  }
}

// By one thread: keeps the first failure of a call and counts the others, as on the CPU.
__device__ inline void report_faults(const KernelArgs& args, uint32_t count, uint32_t first_pair) {
  if (count != 0 && args.out.status) record_faults(args, count, first_pair);
}

__device__ __noinline__ inline void fill_with_zeros(std::byte* begin, int64_t size, uint32_t first, uint32_t step) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const int64_t head = min(static_cast<int64_t>(-address & 15u), size);
  const int64_t num_packets = (size - head) / 16;
  const int64_t tail = head + num_packets * 16;
  for (int64_t i = first; i < num_packets; i += step) gpu::store_packet(begin + head + i * 16, {});
  for (int64_t i = first; i < head; i += step) begin[i] = std::byte{0};
  for (int64_t i = tail + first; i < size; i += step) begin[i] = std::byte{0};
}

__device__ inline void fill_zeros(const KernelArgs& args, uint32_t first, uint32_t step) {
  if (args.out.zero_fill) fill_with_zeros(args.out.zero_fill, args.out.zero_bytes, first, step);
}

// Of many waves the first half writes what belongs to codes, the other half pairs: each takes its time, mostly to begin
// with. Few waves do the one and then the other. Waves of a kind are counted over all blocks, neighbours in different ones.
template <class Tile>
struct WaveRoles {
  static constexpr bool kSplit = Tile::kWaves >= 16;
  static constexpr uint32_t kCount = kSplit ? Tile::kWaves / 2 : Tile::kWaves;  // of a kind in a block

  __device__ static bool writes_codes() { return !kSplit || Tile::Wave::index_in_block() < kCount; }
  __device__ static bool writes_pairs() { return !kSplit || Tile::Wave::index_in_block() >= kCount; }
  __device__ static uint32_t index_in_block() { return Tile::Wave::index_in_block() % kCount; }
};

// What one block writes of a sorted tile.
struct TileShare {
  uint32_t first_pair;  // of the tile
  uint32_t end_pair;
  uint32_t num_staged;  // positions of the tile
  uint32_t begin;       // the block's
  uint32_t end;
  uint32_t first;  // this thread's, every step-th from here on
  uint32_t step;
  bool pair_slots;

  // The share of block `index` of `count`; by waves of these roles.
  template <class Tile>
  __device__ static TileShare of_block(uint32_t first_pair, uint32_t end_pair, uint32_t num_staged, uint32_t index,
                                       uint32_t count) {
    using Roles = WaveRoles<Tile>;
    const uint32_t size = (num_staged + count - 1) / count;
    TileShare share{first_pair, end_pair, num_staged, min(index * size, num_staged), 0, 0, Roles::kCount * Tile::kWave,
                    false};
    share.end = min(share.begin + size, num_staged);
    share.first =
        Roles::writes_pairs() ? share.begin + Roles::index_in_block() * Tile::kWave + Tile::Wave::lane() : share.end;
    return share;
  }
};

// A sorted tile that is written by position: what its kernel keeps in tile.rest.
template <class Tile>
struct Staged {
  uint32_t* entries;  // [Tile::kPairs]: pair in the tile | code << 16

  static constexpr int64_t kBytes = Tile::kPairs * int64_t{4};

  // Ranked codes to positions, and the pairs to their places.
  __device__ void stage(const Tile& tile, const uint32_t (&ranked)[Tile::kItems]) const {
    const uint16_t* const positions = tile.row();
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      const uint32_t code = ranked[i] & 0xffffu;
      if (code != kNoCode) entries[positions[code] + (ranked[i] >> 16)] = Tile::pair_of(i) | code << 16;
    }
  }

  // This thread's part of the share to its slots. False if two of these pairs have changed places.
  __device__ bool write(const KernelArgs& args, const Tile& tile, const TileShare& share) const {
    const uint32_t first_pair = share.first_pair;
    const uint32_t num_staged = share.num_staged;
    const uint32_t step = share.step;
    constexpr int kBatch = 4;  // shared loads in flight
    bool in_order = true;
#pragma unroll 1
    for (uint32_t position = share.first; position < share.end; position += kBatch * step) {
      uint32_t own[kBatch];
      uint32_t slots[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t at = min(position + i * step, share.end - 1);
        own[i] = entries[at];
        if (gpu::kAtomicsInLaneOrder) in_order &= at + 1 == num_staged || own[i] < entries[at + 1];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) slots[i] = tile.shift[own[i] >> 16] + position + i * step;
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (position + i * step < share.end)
          args.out.sorted_pairs[slots[i]] = static_cast<int32_t>(first_pair + (own[i] & 0xffffu));
      if (!args.out.has_extras) continue;
#pragma unroll 1
      for (int i = 0; i < kBatch && position + i * step < share.end; ++i) {
        const uint32_t entry = entries[position + i * step];
        write_slot_extras(args, tile.shift[entry >> 16] + position + i * step, first_pair + (entry & 0xffffu));
      }
    }
    return in_order;
  }

  // Whether no two pairs of the whole tile have changed places; of the block.
  __device__ bool in_order(uint32_t num_staged) const {
    bool result = true;
#pragma unroll 1
    for (uint32_t at = threadIdx.x + 1; at < num_staged; at += Tile::kThreads) result &= entries[at - 1] < entries[at];
    return result;
  }

  // The same of the positions on either side of the block's. Pairs that have changed places were ranked by one instruction:
  // they lie as close together as a wave is wide.
  __device__ bool in_order_beside(const TileShare& share) const {
    constexpr uint32_t kWide = gpu::kHardwareWave;
    if (threadIdx.x >= 2 * kWide) return true;
    const uint32_t at = (threadIdx.x < kWide ? share.begin : share.end + kWide) - kWide + threadIdx.x % kWide;
    // Before the first position the number wraps.
    return at >= share.num_staged || at + 1 >= share.num_staged || entries[at] < entries[at + 1];
  }
};

// pair_slots of this thread's pairs, from ranked codes and positions.
template <class Tile>
__device__ void write_pair_slots(const KernelArgs& args, const Tile& tile, const uint32_t (&ranked)[Tile::kItems],
                                 uint32_t first_pair, uint32_t end) {
  const uint16_t* const positions = tile.row();
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i) {
    const uint32_t pair = first_pair + Tile::pair_of(i);
    if (pair >= end) continue;
    const uint32_t code = ranked[i] & 0xffffu;
    const bool placed = code != kNoCode;
    write_pair_slot(args, pair, placed, placed ? tile.shift[code] + positions[code] + (ranked[i] >> 16) : 0);
  }
}

// Sorts a tile again, without atomics, and writes it again: for the block that found pairs in the wrong order. `starts`:
// where this thread's codes start in the tile.
template <class Tile, bool kPlain>
__device__ __noinline__ void rewrite_tile(const KernelArgs& args, const Tile tile, const TileShare share,
                                          const Quad starts) {
  const Staged<Tile> staged{reinterpret_cast<uint32_t*>(tile.rest)};
  uint32_t codes[Tile::kItems];
  Faults reported_before;
  load_codes<Tile, kPlain>(args.source, share.first_pair, share.end_pair, codes, reported_before);
  tile.clear_row();
  tile.rank(codes, true);
  __syncthreads();
  tile.spread_rows(starts);
  __syncthreads();
  staged.stage(tile, codes);
  if (share.pair_slots) write_pair_slots(args, tile, codes, share.first_pair, share.end_pair);
  __syncthreads();
  staged.write(args, tile, share);
}

// Writes the staged tile, pair_slots excepted.
template <class Tile, bool kPlain>
__device__ void write_tile(const KernelArgs& args, const Tile& tile, const TileShare& share, const Quad& starts) {
  const Staged<Tile> staged{reinterpret_cast<uint32_t*>(tile.rest)};
  bool in_order = staged.write(args, tile, share);
  if constexpr (gpu::kAtomicsInLaneOrder) {
    // Another block may have the positions of this one's pair_slots.
    if (share.pair_slots)
      in_order &= staged.in_order(share.num_staged);
    else
      in_order &= staged.in_order_beside(share);
    if (__syncthreads_or(!in_order)) rewrite_tile<Tile, kPlain>(args, tile, share, starts);
  }
}

}  // namespace mixlane::align_gpu
