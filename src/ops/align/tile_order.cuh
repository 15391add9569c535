// Sorted tiles kept in shared memory, 16 bits a pair, until it is known where their codes go.
#pragma once

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

template <class Tile>
struct TileOrders {
  // A run of more pairs than this is written by all waves, one after the other would take long. There are fewer than
  // kWaves of them in a tile.
  static constexpr uint32_t kLongRun = Tile::kPairs / Tile::kWaves;

  uint16_t* pairs;       // [capacity][kPairs]: pair in the tile, by position
  uint16_t* starts;      // [capacity][row]: position of each code, then the number of pairs in the tile
  uint16_t* long_codes;  // [capacity][kWaves]: codes of long runs
  uint32_t* num_long;    // [capacity]
  uint32_t row;
  uint32_t capacity;

  __host__ __device__ static constexpr uint32_t row_length(uint32_t num_codes) { return num_quads(num_codes) * 4 + 4; }
  __host__ __device__ static constexpr int64_t bytes_per_tile(uint32_t num_codes) {
    return (Tile::kPairs + row_length(num_codes) + Tile::kWaves) * int64_t{2} + 4;
  }

  __device__ TileOrders(const Tile& tile, uint32_t num_tiles) : row(tile.stride + 4), capacity(num_tiles) {
    pairs = reinterpret_cast<uint16_t*>(tile.rest);
    starts = pairs + capacity * Tile::kPairs;
    long_codes = starts + capacity * row;
    num_long = reinterpret_cast<uint32_t*>(long_codes + capacity * Tile::kWaves);
  }

  // Sorts a tile into entry `index`; the codes become ranked. Returns the tile's pairs of this thread's codes. Entries are
  // complete after the next __syncthreads().
  __device__ Quad sort(const Tile& tile, uint32_t index, uint32_t (&codes)[Tile::kItems], bool exact) const {
    if (threadIdx.x == 0) num_long[index] = 0;
    Tile::Wave::sync();
    tile.clear_row();
    tile.rank(codes, exact);
    __syncthreads();
    const Quad in_tile = tile.sum_rows();
    const Quad first = starts_of(tile.sum_below(in_tile.sum()), in_tile);
    tile.spread_rows(first);
    if (threadIdx.x < tile.stride / 4) note_runs(tile, index, in_tile, first);
    __syncthreads();
    const uint16_t* const positions = tile.row();
    uint16_t* const order = pairs + index * Tile::kPairs;
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      const uint32_t code = codes[i] & 0xffffu;
      if (code != kNoCode) order[positions[code] + (codes[i] >> 16)] = static_cast<uint16_t>(Tile::pair_of(i));
    }
    return in_tile;
  }

  // tile.shift holds the next slot of each code while tiles are written.
  __device__ void set_slots(const Tile& tile, const Quad& slots) const { tile.set_shift({}, slots); }

  // Past the first `num_tiles` entries; between two __syncthreads().
  __device__ void advance_slots(const Tile& tile, uint32_t num_tiles) const {
#pragma unroll 1
    for (uint32_t code = threadIdx.x; code < tile.stride; code += Tile::kThreads)
#pragma unroll 1
      for (uint32_t index = 0; index < num_tiles; ++index) {
        const uint16_t* const bounds = starts + index * row + code;
        tile.shift[code] += static_cast<uint32_t>(bounds[1]) - bounds[0];
      }
  }

  // Writes the first `num_tiles` entries, consecutive tiles from `first_pair` on. False if two of this thread's pairs have
  // changed places.
  __device__ bool write(const KernelArgs& args, const Tile& tile, uint32_t num_tiles, uint32_t first_pair) const {
    if (num_tiles == 0) return true;
    // Few lanes for short runs.
    const bool short_runs = uint32_t{starts[row - 4]} * 2 < args.num_codes * Tile::kWave;
    bool in_order = short_runs ? write_runs<Tile::kWave / 4>(args, tile, num_tiles, first_pair)
                               : write_runs<Tile::kWave>(args, tile, num_tiles, first_pair);
#pragma unroll 1
    for (uint32_t index = 0; index < num_tiles; ++index)
#pragma unroll 1
      for (uint32_t i = 0; i < num_long[index]; ++i)
        in_order &= write_long_run(args, tile, index, long_codes[index * Tile::kWaves + i], first_pair);
    return in_order;
  }

 private:
  struct Run {
    const uint16_t* order;
    uint32_t begin;  // positions
    uint32_t end;
    __device__ uint32_t length() const { return end - begin; }
  };

  __device__ Run run_of(uint32_t index, uint32_t code) const {
    const uint16_t* const bounds = starts + index * row + code;
    return {pairs + index * Tile::kPairs, bounds[0], bounds[1]};
  }

  __device__ void note_runs(const Tile& tile, uint32_t index, const Quad& in_tile, const Quad& first) const {
    uint16_t* const to = starts + index * row + threadIdx.x * 4;
    *reinterpret_cast<uint2*>(to) = pack_quad(first);
    if (threadIdx.x == tile.stride / 4 - 1) to[4] = static_cast<uint16_t>(first.of[3] + in_tile.of[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (in_tile.of[j] > kLongRun)
        long_codes[index * Tile::kWaves + atomicAdd(num_long + index, 1u)] = static_cast<uint16_t>(threadIdx.x * 4 + j);
  }

  // Pairs to slots, and what else there is to write with them.
  struct Writer {
    int32_t* sorted_pairs;
    const KernelArgs* more;  // null if sorted_pairs is all

    __device__ explicit Writer(const KernelArgs& args)
        : sorted_pairs(args.out.sorted_pairs), more(args.out.has_extras || args.out.pair_slots ? &args : nullptr) {}

    __device__ __noinline__ static void write_more(const KernelArgs& args, uint32_t slot, uint32_t pair) {
      if (args.out.has_extras) write_slot_extras(args, slot, pair);
      if (args.out.pair_slots) args.out.pair_slots[pair] = static_cast<int32_t>(slot);
    }

    // In windows that start at multiples of kLanes slots, so that they are whole lines. False if two of this thread's
    // pairs have changed places.
    template <uint32_t kLanes>
    __device__ bool write_run(const Run& run, uint32_t slot, uint32_t first_pair, uint32_t lane) const {
      const uint32_t skipped = slot % kLanes;
      const uint32_t end = skipped + run.length();
      const uint32_t first_slot = slot - skipped;
      const uint16_t* const from = run.order + run.begin - skipped;
      int32_t* const to = sorted_pairs + first_slot;
      bool in_order = true;
#pragma unroll 2
      for (uint32_t at = lane; at < end; at += kLanes) {
        if (at < skipped) continue;
        const uint32_t own = from[at];
        if (gpu::kAtomicsInLaneOrder) in_order &= own < from[at + 1] || at + 1 == end;
        to[at] = static_cast<int32_t>(first_pair + own);
        if (more) write_more(*more, first_slot + at, first_pair + own);
      }
      return in_order;
    }
  };

  template <uint32_t kLanes>
  __device__ bool write_runs(const KernelArgs& args, const Tile& tile, uint32_t num_tiles, uint32_t first_pair) const {
    const Writer writer(args);
    const uint32_t lane = threadIdx.x % kLanes;
    bool in_order = true;
#pragma unroll 1
    for (uint32_t code = threadIdx.x / kLanes; code < args.num_codes; code += Tile::kThreads / kLanes) {
      uint32_t slot = tile.shift[code];
#pragma unroll 1
      for (uint32_t index = 0; index < num_tiles; ++index) {
        const Run run = run_of(index, code);
        if (run.length() <= kLongRun)
          in_order &= writer.template write_run<kLanes>(run, slot, first_pair + index * Tile::kPairs, lane);
        slot += run.length();
      }
    }
    return in_order;
  }

  // By all threads.
  __device__ bool write_long_run(const KernelArgs& args, const Tile& tile, uint32_t index, uint32_t code,
                                 uint32_t first_pair) const {
    uint32_t slot = tile.shift[code];
#pragma unroll 1
    for (uint32_t earlier = 0; earlier < index; ++earlier) slot += run_of(earlier, code).length();
    return Writer(args).template write_run<Tile::kThreads>(run_of(index, code), slot, first_pair + index * Tile::kPairs,
                                                           threadIdx.x);
  }
};

// Asks for the ids of a tile that is sorted later.
template <class Tile, bool kPlain>
__device__ void prefetch_tile(const PairSource& source, uint32_t first_pair, uint32_t end) {
  if constexpr (kPlain) {
    constexpr uint32_t kLine = 32;  // ids
    const uint32_t tile_end = min(first_pair + Tile::kPairs, end);
    for (uint32_t pair = first_pair + threadIdx.x * kLine; pair < tile_end; pair += Tile::kThreads * kLine)
      gpu::prefetch_to_l2(static_cast<const int32_t*>(source.ids) + pair);
  }
}

// -1 for the pairs of this thread that have no slot.
template <class Tile>
__device__ void write_dropped_slots(const KernelArgs& args, const uint32_t (&codes)[Tile::kItems], uint32_t first_pair,
                                    uint32_t end) {
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i) {
    const uint32_t pair = first_pair + Tile::pair_of(i);
    if (pair < end && codes[i] == kNoCode) write_pair_slot(args, pair, false, 0);
  }
}

}  // namespace mixlane::align_gpu
