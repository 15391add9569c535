// The K largest of a wave's keys, equal ones by ascending column. A key is a number of the same order as the choice; 0
// stands for a column that can't be chosen. At least K others are there.
#pragma once

#include "ops/routing/logits.cuh"

namespace mixlane::routing_gpu {

inline constexpr int kMaxLeft = 64;  // keys that are worth ranking one by one

// Chosen columns with their places in the descending order; a place from K on means none.
template <int kSize>
struct Chosen {
  static constexpr int kPerLane = kMaxLeft / kSize;
  uint32_t columns[kPerLane];
  uint32_t keys[kPerLane];
  uint32_t places[kPerLane];
  int used = kPerLane;  // entries that any lane of the hardware's wave uses

  __device__ Chosen() {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      columns[i] = keys[i] = 0;
      places[i] = static_cast<uint32_t>(i * kSize) + gpu::Wave<kSize>::lane();
    }
  }
};

// A wave's shared memory.
struct Scratch {
  uint64_t left[kMaxLeft + 2];  // key, then the complement of the column
  uint32_t maxima[kMaxLeft];
};

// Whether any wave of the hardware's wave says so: what they do together they must decide together.
__device__ inline bool any_beside(bool predicate) { return gpu::Wave<gpu::kHardwareWave>::ballot(predicate) != 0; }

template <int kValues>
struct Keys {
  uint32_t of[kValues];
};

// K rounds of "the best one below the last", whatever the keys are. Rarely called: by value, so that the caller's keys
// stay in registers.
template <int kSize, int kValues>
__device__ __noinline__ Chosen<kSize> select_by_rounds(const Keys<kValues> keys, uint32_t num_topk) {
  Chosen<kSize> chosen;
  uint32_t last_key = ~0u;
  uint32_t last_column = 0;
  for (uint32_t k = 0; k < num_topk; ++k) {
    uint32_t best = 0;
    uint32_t column = ~0u;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) {
      const uint32_t mine = column_of<kSize>(slot);
      const bool below = keys.of[slot] < last_key || (keys.of[slot] == last_key && mine > last_column);
      if (below && keys.of[slot] > best) {
        best = keys.of[slot];
        column = mine;
      }
    }
    last_key = gpu::wave_max<kSize>(best);
    last_column = ~gpu::wave_max<kSize>(best == last_key ? ~column : 0u);
#pragma unroll
    for (int i = 0; i < Chosen<kSize>::kPerLane; ++i) {
      if (chosen.places[i] != k) continue;
      chosen.columns[i] = last_column;
      chosen.keys[i] = last_key;
    }
  }
  return chosen;
}

__device__ inline uint32_t count_above(const uint4& four, uint32_t key) {
  return (four.x > key) + (four.y > key) + (four.z > key) + (four.w > key);
}

// A key that at least K keys reach: the K-th largest of the maxima of disjoint parts. 2K parts or more leave few others
// above it; the fewer parts the quicker.
template <int kSize, int kValues>
__device__ uint32_t find_bound(const uint32_t (&keys)[kValues], uint32_t num_topk, Scratch& scratch) {
  using W = gpu::Wave<kSize>;
  uint32_t first = 0;
  uint32_t second = 0;
#pragma unroll
  for (int slot = 0; slot < kValues / 2; ++slot) {
    first = max(first, keys[slot]);
    second = max(second, keys[slot + kValues / 2]);
  }
  const bool two_parts = num_topk > kSize / 2;
  if (!two_parts) first = max(first, second);
  if (num_topk <= kSize / 4) first = max(first, W::shuffle(first, static_cast<int>(W::lane() ^ (kSize / 2))));
  const uint32_t num_parts = num_topk <= kSize / 4 ? kSize / 2 : two_parts ? 2 * kSize : kSize;
  scratch.maxima[W::lane()] = first;
  if (two_parts) scratch.maxima[kSize + W::lane()] = second;
  W::sync();
  uint32_t above_first = 0;
  uint32_t above_second = 0;
  const auto* fours = reinterpret_cast<const uint4*>(scratch.maxima);
#pragma unroll 4
  for (uint32_t i = 0; i < num_parts / 4; ++i) {
    const uint4 four = fours[i];
    above_first += count_above(four, first);
    if (two_parts) above_second += count_above(four, second);
  }
  uint32_t reached = above_first < num_topk ? first : ~0u;
  if (two_parts && above_second < num_topk) reached = min(reached, second);
  return max(~gpu::wave_max<kSize>(~reached), 1u);
}

// Writes the keys that reach the bound, as far as there is room, and returns their number.
template <int kSize, int kValues>
__device__ uint32_t gather(const uint32_t (&keys)[kValues], uint32_t bound, uint64_t* left) {
  using W = gpu::Wave<kSize>;
  uint32_t count = 0;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    const bool stays = keys[slot] >= bound;
    const auto staying = W::ballot(stays);
    const uint32_t place = count + static_cast<uint32_t>(W::count(staying & W::lanes_below()));
    if (stays && place < kMaxLeft)
      left[place] = static_cast<uint64_t>(keys[slot]) << 32 | static_cast<uint32_t>(~column_of<kSize>(slot));
    count += static_cast<uint32_t>(W::count(staying));
  }
  if (count < kMaxLeft && W::lane() == 0) left[count] = 0;  // they are read two at a time
  W::sync();
  return count;
}

// Finds a bound that few keys reach and ranks those: a key's place is the number of larger ones. The cost hardly depends
// on K. Where too many reach it (equal logits, say) rounds do the work.
template <int kSize, int kValues>
__device__ Chosen<kSize> select(const uint32_t (&keys)[kValues], uint32_t num_topk, Scratch& scratch) {
  const uint32_t bound = find_bound<kSize>(keys, num_topk, scratch);
  const uint32_t num_left = gather<kSize>(keys, bound, scratch.left);
  if (any_beside(num_left > kMaxLeft || num_topk > 2 * kSize)) {
    Keys<kValues> copy;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) copy.of[slot] = keys[slot];
    return select_by_rounds<kSize>(copy, num_topk);
  }
  Chosen<kSize> chosen;
  if (!any_beside(num_left > kSize)) chosen.used = 1;
  const auto* pairs = reinterpret_cast<const ulonglong2*>(scratch.left);
#pragma unroll
  for (int i = 0; i < Chosen<kSize>::kPerLane; ++i) {
    if (i >= chosen.used) break;
    const uint32_t at = chosen.places[i];
    const uint64_t mine = at < num_left ? scratch.left[at] : 0;
    uint32_t above = at < num_left ? 0 : kMaxLeft;
#pragma unroll 4
    for (uint32_t pair = 0; pair < (num_left + 1) / 2; ++pair) {
      const ulonglong2 two = pairs[pair];
      above += (two.x > mine) + (two.y > mine);
    }
    chosen.columns[i] = ~static_cast<uint32_t>(mine);
    chosen.keys[i] = static_cast<uint32_t>(mine >> 32);
    chosen.places[i] = above;
  }
  return chosen;
}

}  // namespace mixlane::routing_gpu
