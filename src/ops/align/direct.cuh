// Few pairs go to their slots from the registers that they were ranked in: a tile sorted in shared memory would make its
// runs of slots consecutive stores, but takes a pass and a barrier.
#pragma once

#include "gpu/prologue.cuh"
#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// The pairs of one block.
struct PairRange {
  uint32_t begin;
  uint32_t end;

  __device__ static PairRange of(uint32_t num_pairs, uint32_t index, uint32_t count) {
    const uint32_t share = even_share(num_pairs, count);
    const uint32_t begin = min(index * share, num_pairs);
    return {begin, min(begin + share, num_pairs)};
  }
};

// The codes of this thread's pairs in tile `index` of `count`. Contains the wait for the previous kernel: the places of the
// ids are computed ahead of it.
template <class Tile, bool kPlain>
__device__ PairRange wait_and_load(const PairSource& source, uint32_t index, uint32_t count, uint32_t (&codes)[Tile::kItems],
                                   Faults& faults) {
  PairRange range = PairRange::of(source.num_pairs, index, count);
  const auto* ids = static_cast<const int32_t*>(source.ids) + range.begin + Tile::pair_of(0);
  gpu::compute_now(ids);
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  if (source.num_segments == 1) {
    range = PairRange::of(count_pairs(source), index, count);
    ids = static_cast<const int32_t*>(source.ids) + range.begin + Tile::pair_of(0);
  }
  if constexpr (kPlain) {
    const uint32_t first = range.begin + Tile::pair_of(0);
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      codes[i] = first + i * Tile::kWave < range.end ? gpu::load_streaming(ids + i * Tile::kWave) : kAbsent;
    resolve_codes<Tile, true>(source, first, range.end, codes, faults);
  } else {
    load_codes<Tile, false>(source, range.begin, range.end, codes, faults);
  }
  return range;
}

// Who writes what where `count` blocks have sorted the same pairs and this is number `index` of them: every count-th wave
// writes the pairs it ranked, the others what belongs to codes.
template <class Tile>
struct DirectRoles {
  bool writes_pairs;
  bool writes_codes;
  uint32_t index;  // of this wave among the block's that write codes
  uint32_t count;  // of those

  __device__ static DirectRoles of(uint32_t index, uint32_t count) {
    constexpr uint32_t kWaves = Tile::kWaves;
    const uint32_t wave = Tile::Wave::index_in_block();
    if (count == 1) return {true, true, wave, kWaves};
    if (count >= kWaves) {  // the usual case, without divisions
      const bool has_pairs = index < kWaves;
      const bool pairs = wave == index;
      return {pairs, !pairs, wave - (wave > index ? 1u : 0u), kWaves - (has_pairs ? 1u : 0u)};
    }
    const auto pair_waves_below = [&](uint32_t end) { return (end + count - 1 - index) / count; };
    const bool pairs = wave % count == index;
    return {pairs, !pairs, wave - pair_waves_below(wave), kWaves - pair_waves_below(kWaves)};
  }
};

// What its kernel keeps in tile.rest.
template <class Tile>
struct Direct {
  uint16_t* numbers;  // [Tile::kPairs]: at a pair's position in the tile, its number in its wave

  static constexpr int64_t kBytes = Tile::kPairs * int64_t{2};

  // This wave's pairs, and their entries of pair_slots.
  template <bool kPlain>
  __device__ void write(const KernelArgs& args, const Tile& tile, const uint32_t (&ranked)[Tile::kItems],
                        uint32_t first_pair, uint32_t end, bool pairs, bool pair_slots) const {
    // Of logical waves one may write and the other of the same hardware wave not: they sync together.
    if (Tile::kWave == gpu::kHardwareWave && !pairs && !pair_slots) return;
    const uint16_t* const starts = tile.row();
    uint32_t positions[Tile::kItems];
    uint32_t slots[Tile::kItems];
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      const uint32_t code = ranked[i] & 0xffffu;
      const uint32_t some_code = code == kNoCode ? 0 : code;
      positions[i] = starts[some_code] + (ranked[i] >> 16);
      slots[i] = tile.shift[some_code] + positions[i];
    }
    if (pairs) write_pairs(args, ranked, slots, first_pair);
    if (pair_slots) write_slots_of_pairs(args, ranked, slots, first_pair, end);
    if constexpr (gpu::kAtomicsInLaneOrder)
      if (!in_order(ranked, positions)) rewrite<kPlain>(args, tile, first_pair, end, pairs, pair_slots);
  }

 private:
  __device__ static void write_pairs(const KernelArgs& args, const uint32_t (&ranked)[Tile::kItems],
                                     const uint32_t (&slots)[Tile::kItems], uint32_t first_pair) {
    const auto has_slot = [&](int i) { return (ranked[i] & 0xffffu) != kNoCode; };
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if (has_slot(i)) args.out.sorted_pairs[slots[i]] = static_cast<int32_t>(first_pair + Tile::pair_of(i));
    if (!args.out.has_extras) return;
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if (has_slot(i)) write_slot_extras(args, slots[i], first_pair + Tile::pair_of(i));
  }

  __device__ static __noinline__ void write_slot_of_pair(const KernelArgs& args, uint32_t pair, bool placed, uint32_t slot) {
    write_pair_slot(args, pair, placed, slot);
  }
  __device__ static void write_slots_of_pairs(const KernelArgs& args, const uint32_t (&ranked)[Tile::kItems],
                                              const uint32_t (&slots)[Tile::kItems], uint32_t first_pair, uint32_t end) {
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      const uint32_t pair = first_pair + Tile::pair_of(i);
      if (pair < end) write_slot_of_pair(args, pair, (ranked[i] & 0xffffu) != kNoCode, slots[i]);
    }
  }

  // Whether no two of this wave's pairs have changed places; of the hardware's wave. Waves have counters of their own, so
  // pairs of different ones can't.
  __device__ bool in_order(const uint32_t (&ranked)[Tile::kItems], const uint32_t (&positions)[Tile::kItems]) const {
    using Whole = gpu::Wave<gpu::kHardwareWave>;
    const auto number_of = [](int i) { return i * Tile::kWave + Tile::Wave::lane(); };
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if ((ranked[i] & 0xffffu) != kNoCode) numbers[positions[i]] = static_cast<uint16_t>(number_of(i));
    Tile::Wave::sync();
    bool result = true;
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if ((ranked[i] & 0xffffu) != kNoCode && ranked[i] >> 16 != 0) result &= numbers[positions[i] - 1] < number_of(i);
    return Whole::ballot(!result) == 0;
  }

  // Ranks this wave's pairs again, without atomics.
  template <bool kPlain>
  __device__ static __noinline__ void rewrite(const KernelArgs& args, const Tile tile, uint32_t first_pair, uint32_t end,
                                              bool pairs, bool pair_slots) {
    uint32_t codes[Tile::kItems];
    Faults reported_before;
    load_codes<Tile, kPlain>(args.source, first_pair, end, codes, reported_before);
    tile.rank(codes, true);  // counts on from the wave's first positions
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      const uint32_t code = codes[i] & 0xffffu;
      if (code == kNoCode) continue;
      const uint32_t slot = tile.shift[code] + (codes[i] >> 16);
      if (pairs) write_slot(args, slot, first_pair + Tile::pair_of(i));
      if (pair_slots) args.out.pair_slots[first_pair + Tile::pair_of(i)] = static_cast<int32_t>(slot);
    }
  }
};

}  // namespace mixlane::align_gpu
