// The K largest of a wave's keys, descending, equal ones by ascending column. A key is a number of the same order as the
// choice; 0 stands for a column that can't be chosen. At least K others are there.
#pragma once

#include "ops/routing/logits.cuh"

namespace mixlane::routing_gpu {

// The chosen columns: the k-th one is in lane k % kSize, at k / kSize.
template <int kSize>
struct Chosen {
  static constexpr int kPerLane = (kMaxTopk + kSize - 1) / kSize;
  uint32_t columns[kPerLane];

  __device__ static uint32_t place(int i) { return static_cast<uint32_t>(i * kSize) + gpu::Wave<kSize>::lane(); }
  __device__ void set(uint32_t k, uint32_t column) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (place(i) == k) columns[i] = column;
  }
};

template <int kValues>
struct Keys {
  uint32_t of[kValues];
};

// K rounds of "the best one below the last": any keys, but two reductions per round. Rarely called: a call by value, so that
// the caller's keys stay in registers.
template <int kSize, int kValues>
__device__ __noinline__ Chosen<kSize> select_by_rounds(const Keys<kValues> keys, uint32_t num_topk) {
  Chosen<kSize> chosen{};
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
    chosen.set(k, last_column);
  }
  return chosen;
}

template <int kSize, int kValues>
__device__ Chosen<kSize> select_by_rounds(const uint32_t (&keys)[kValues], uint32_t num_topk) {
  Keys<kValues> copy;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) copy.of[slot] = keys[slot];
  return select_by_rounds<kSize>(copy, num_topk);
}

// Batcher's odd-even merge sort of a lane's own values.
template <int kValues>
__device__ void sort_descending(uint32_t (&values)[kValues]) {
#pragma unroll
  for (int p = 1; p < kValues; p *= 2)
#pragma unroll
    for (int k = p; k >= 1; k /= 2)
#pragma unroll
      for (int j = k % p; j + k < kValues; j += 2 * k)
#pragma unroll
        for (int i = 0; i < k; ++i)
          if (i + j + k < kValues && (i + j) / (2 * p) == (i + j + k) / (2 * p)) {
            const uint32_t low = min(values[i + j], values[i + j + k]);
            values[i + j] = max(values[i + j], values[i + j + k]);
            values[i + j + k] = low;
          }
}

// routing.warp: column and front bits of the key in one word, so that a round takes one reduction. Where two of the words in
// question have the same front bits, the rear ones decide: by rounds.
struct SelectPacked {
  static constexpr int kScratchBytes = 0;

  template <int kSize, int kValues>
  __device__ static Chosen<kSize> select(const uint32_t (&keys)[kValues], const KernelArgs& args, void*) {
    const uint32_t mask = args.column_mask;
    uint32_t words[kValues];
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) words[slot] = (keys[slot] & ~mask) | (mask - column_of<kSize>(slot));
    constexpr bool kSorted = kValues <= 8;
    if constexpr (kSorted) sort_descending(words);
    Chosen<kSize> chosen{};
    uint32_t last = ~0u;
    bool ambiguous = false;
    const uint32_t num_rounds = args.num_topk + (args.short_keys ? 0 : 1);
    for (uint32_t k = 0; k < num_rounds; ++k) {
      uint32_t best = 0;
      if constexpr (kSorted) {
        best = words[0];
      } else {
#pragma unroll
        for (int slot = 0; slot < kValues; ++slot) best = max(best, words[slot] < last ? words[slot] : 0u);
      }
      const uint32_t next = gpu::wave_max<kSize>(best);
      if constexpr (kSorted) {
        const bool taken = best == next;
#pragma unroll
        for (int slot = 0; slot < kValues; ++slot)
          if (taken) words[slot] = slot + 1 < kValues ? words[slot + 1] : 0u;
      }
      ambiguous |= (last ^ next) <= mask;
      last = next;
      chosen.set(k, mask - (next & mask));
    }
    if (ambiguous && !args.short_keys) return select_by_rounds<kSize>(keys, args.num_topk);
    return chosen;
  }
};

__device__ inline uint64_t below(uint64_t value, uint64_t bound) { return value < bound ? value : 0; }

template <int kSize>
__device__ uint64_t wave_max_wide(uint64_t value) {
  const auto high = static_cast<uint32_t>(value >> 32);
  const uint32_t top = gpu::wave_max<kSize>(high);
  const uint32_t low = gpu::wave_max<kSize>(high == top ? static_cast<uint32_t>(value) : 0u);
  return static_cast<uint64_t>(top) << 32 | low;
}

// routing.threshold: K lanes have a key at or above the K-th largest of the lanes' maxima, so no key below that bound is
// chosen. The few that are left move together and are sorted; the cost hardly depends on K.
struct SelectAboveBound {
  static constexpr int kPerLane = 4;  // of those that are left
  static constexpr int kScratchBytes = kPerLane * gpu::kHardwareWave * 8;

  template <int kSize, int kValues>
  __device__ static Chosen<kSize> select(const uint32_t (&keys)[kValues], const KernelArgs& args, void* scratch) {
    if (args.num_topk > kSize) return select_by_rounds<kSize>(keys, args.num_topk);
    auto* left = static_cast<uint64_t*>(scratch);
    const uint32_t num_left = gather<kSize>(keys, bound<kSize>(keys, args.num_topk), left);
    if (num_left > kPerLane * kSize) return select_by_rounds<kSize>(keys, args.num_topk);
    gpu::Wave<kSize>::sync();
    const uint32_t lane = gpu::Wave<kSize>::lane();
    Chosen<kSize> chosen{};
    if (num_left <= kSize) {
      const uint64_t mine = gpu::wave_sort_descending<kSize>(lane < num_left ? left[lane] : 0ull);
      chosen.columns[0] = ~static_cast<uint32_t>(mine);
    } else {
      uint64_t mine[kPerLane];
#pragma unroll
      for (uint32_t i = 0; i < kPerLane; ++i) mine[i] = i * kSize + lane < num_left ? left[i * kSize + lane] : 0;
      uint64_t last = ~0ull;
      for (uint32_t k = 0; k < args.num_topk; ++k) {
        last = wave_max_wide<kSize>(max(max(below(mine[0], last), below(mine[1], last)),
                                        max(below(mine[2], last), below(mine[3], last))));
        chosen.set(k, ~static_cast<uint32_t>(last));
      }
    }
    return chosen;
  }

 private:
  template <int kSize, int kValues>
  __device__ static uint32_t bound(const uint32_t (&keys)[kValues], uint32_t num_topk) {
    uint32_t largest = 0;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) largest = max(largest, keys[slot]);
    const uint32_t sorted = gpu::wave_sort_descending<kSize>(largest);
    return max(gpu::Wave<kSize>::shuffle(sorted, static_cast<int>(num_topk) - 1), 1u);
  }

  // Writes what is at or above the bound, as far as there is room; returns its number.
  template <int kSize, int kValues>
  __device__ static uint32_t gather(const uint32_t (&keys)[kValues], uint32_t bound, uint64_t* left) {
    using W = gpu::Wave<kSize>;
    uint32_t count = 0;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) {
      const bool stays = keys[slot] >= bound;
      const auto staying = W::ballot(stays);
      const uint32_t place = count + static_cast<uint32_t>(W::count(staying & W::lanes_below()));
      if (stays && place < kPerLane * kSize)
        left[place] = static_cast<uint64_t>(keys[slot]) << 32 | (~column_of<kSize>(slot) & 0xffffffffu);
      count += static_cast<uint32_t>(W::count(staying));
    }
    return count;
  }
};

}  // namespace mixlane::routing_gpu
