// The stable sort of one tile of pairs by a digit of their codes, inside a block.
#pragma once

#include "ops/align/pairs.cuh"

namespace mixlane::align_gpu {

inline constexpr uint32_t kNumDigits = 256;

// What a block has in shared memory: a tile of pairs that is sorted by digit. It is cut into one run of consecutive items
// per wave; item i of a wave is the next kWave of them, one per lane.
template <int kThreads_, int kItems_, int kWave_>
struct DigitTile {
  using Wave = gpu::Wave<kWave_>;
  static constexpr int kThreads = kThreads_;
  static constexpr int kItems = kItems_;
  static constexpr int kWave = kWave_;
  static constexpr int kWaves = kThreads / kWave;
  static constexpr uint32_t kPairs = kThreads * kItems;
  static_assert(kPairs < 65536 && kThreads >= kNumDigits);

  uint16_t counts[kWaves][kNumDigits];  // of the waves' digits, then where the wave's next one goes in the tile
  uint32_t entries[kPairs];             // by position: item of the tile | digit << 16
  uint16_t codes[kPairs];               // by position
  uint32_t totals[kNumDigits];
  uint32_t shift[kNumDigits];  // target minus position in the tile
  uint32_t wave_sums[kWaves];
  uint32_t fault_count;
  uint32_t fault_first;

  __device__ static uint32_t item_of(uint32_t i) { return (Wave::index_in_block() * kItems + i) * kWave + Wave::lane(); }

  __device__ void clear_faults() {
    if (threadIdx.x == 0) {
      fault_count = 0;
      fault_first = ~0u;
    }
  }
  __device__ void add_faults(const Faults& faults) {
    if (faults.count == 0) return;
    atomicAdd(&fault_count, faults.count);
    atomicMin(&fault_first, faults.first);
  }

  // The sum over all threads of the block, and over those below this one. Ends with a barrier.
  __device__ uint32_t sum(uint32_t value, uint32_t& below) {
    const uint32_t inclusive = Wave::inclusive_sum(value);
    if (Wave::lane() == kWave - 1) wave_sums[Wave::index_in_block()] = inclusive;
    __syncthreads();
    below = inclusive - value;
    uint32_t total = 0;
    for (uint32_t wave = 0; wave < kWaves; ++wave) {
      if (wave < Wave::index_in_block()) below += wave_sums[wave];
      total += wave_sums[wave];
    }
    __syncthreads();
    return total;
  }

  // digits[i] becomes the rank of its item among the wave's equal ones (anything for kNoCode). The lanes that hold the same
  // digit find each other, so ranks are exact and in order, without atomics.
  __device__ void rank(uint32_t (&digits)[kItems]) {
    uint16_t* const counters = counts[Wave::index_in_block()];
    for (uint32_t digit = Wave::lane(); digit < kNumDigits; digit += kWave) counters[digit] = 0;
    Wave::sync();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const bool has_digit = digits[i] != kNoCode;
      const auto peers = Wave::template match_any<9>(digits[i]);  // 256 digits, and none
      const uint32_t below = Wave::count(peers & Wave::lanes_below());
      const uint32_t before = has_digit ? counters[digits[i]] : 0;
      Wave::sync();
      if (below == 0 && has_digit) counters[digits[i]] = static_cast<uint16_t>(before + Wave::count(peers));
      Wave::sync();
      digits[i] = before + below;
    }
  }

  // The waves' counts become positions. `target`: where the next pair of this thread's digit goes; moves on by this tile's.
  // Returns the pairs of the tile.
  __device__ uint32_t plan(uint32_t& target) {
    const uint32_t digit = threadIdx.x;
    uint32_t in_tile = 0;
    if (digit < kNumDigits)
      for (int wave = 0; wave < kWaves; ++wave) in_tile += counts[wave][digit];
    uint32_t start = 0;
    const uint32_t total = sum(in_tile, start);
    if (digit >= kNumDigits) return total;
    shift[digit] = target - start;
    target += in_tile;
    for (int wave = 0; wave < kWaves; ++wave) {
      const uint32_t count = counts[wave][digit];
      counts[wave][digit] = static_cast<uint16_t>(start);
      start += count;
    }
    return total;
  }
};

}  // namespace mixlane::align_gpu
