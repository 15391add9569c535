// Kernels that do each wave operation once, and others that use the rest of the device vocabulary.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::test {

inline constexpr int kWaveThreads = 128;  // of one block
inline constexpr int kMatchBits = 8;
inline constexpr uint32_t kUpDistance = 3;

// What a thread saw, masks as 64 bits.
struct WaveResult {
  uint64_t ballot, match, below;
  uint32_t lane, wave;
  uint32_t from_mirror;  // the value of the lane as far from the wave's end as this one from its begin
  uint32_t from_below;   // of kUpDistance lanes below; its own where there is none
  uint32_t sum_below;    // inclusive
  uint32_t sums_below[2];
  uint32_t largest, sum;
};

// A wave of `wave_size`: 8, 16, 32 or the hardware's. One value per thread; odd ones vote.
void launch_wave_operations(int wave_size, const uint32_t* values, WaveResult* results, Stream stream);

// to[i] = from[i] of 16-byte packets by streaming loads; added[i % 4] counts them where i is a multiple of three, the rest
// add nothing.
void launch_packets(const void* from, void* to, int num_packets, uint32_t* added, Stream stream);

// Every block writes `rounds` times what the others read behind a barrier of the grid; `wrong` counts what they missed.
void launch_grid_rounds(uint32_t num_blocks, int rounds, uint32_t* words, uint32_t* barrier, uint32_t* wrong, Stream stream);

// An empty kernel of this shape.
void launch_shape(uint32_t num_blocks, uint32_t num_threads, int64_t shared_bytes, Stream stream);

}  // namespace mixlane::test
