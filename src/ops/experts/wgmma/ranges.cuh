// Sums of narrow tiles, range by range of k, by one block or by several.
#pragma once

#include "ops/experts/wgmma/finished.cuh"

namespace mixlane::experts_gpu {

template <int kN>
class RangeSums {
 public:
  // `shares`: the product's in WgmmaState.
  __device__ RangeSums(const WgmmaArgs& args, const Schedule& schedule, uint32_t* shares, Status* status, const Tile& tile,
                       const Place& place)
      : args_(args), schedule_(schedule), shares_(shares), status_(status), tile_(tile), place_(place) {}

  // multiply(first, end) makes the sums of these steps. True: `sums` are the tile's; false: they went to the block that has
  // its first range.
  template <class Multiply>
  __device__ bool add_up(Multiply&& multiply, Accumulators<kN>& sums) const {
    float total[kGroupBlocks][kN / 2] = {};
    for (uint32_t range = tile_.first_range; range < tile_.end_range; ++range) {
      const uint32_t first = schedule_.range_begin(range), end = schedule_.range_begin(range + 1);
      if (first < end) multiply(first, end);
      if (tile_.first_range > 0)
        for_each([&](int b, int i) { partials(own_pair(), range)[at(b, i)] = first < end ? sums[b][i] : 0.0f; });
      else if (first < end)
        for_each([&](int b, int i) { total[b][i] += sums[b][i]; });
    }
    if (tile_.first_range > 0) {
      // One release behind the barrier is of the stores of all.
      sync_group();
      if (place_.thread == 0) gpu::store_release<gpu::Scope::device>(flag(own_pair()), 1);
      return false;
    }
    if (tile_.end_range < kRanges) {
      const bool there = wait_for_others();
      add_others(total);
      if (!there) for_each([&](int b, int i) { total[b][i] = __int_as_float(0x7fffffff); });
    }
    for_each([&](int b, int i) { sums[b][i] = total[b][i]; });
    return true;
  }

 private:
  static constexpr uint32_t kThreads = kNumGroups * ptx::kWarpgroupThreads;

  template <class Body>
  __device__ static void for_each(Body&& body) {
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) body(b, i);
  }

  __device__ void sync_group() const { ptx::sync_threads(1 + static_cast<int>(place_.group), ptx::kWarpgroupThreads); }
  __device__ static uint32_t own_pair() { return blockIdx.x / kClusterBlocks; }
  __device__ static uint32_t block_of(uint32_t pair) { return pair * kClusterBlocks + ptx::cluster_rank(); }
  __device__ uint32_t pair_of(uint32_t range) const { return schedule_.pair_of_range(tile_.item * kRanges + range); }
  // This thread's first value of a range; value i of block b is at(b, i) further. At most one of a pair's tiles begins
  // behind its first range.
  __device__ float* partials(uint32_t pair, uint32_t range) const {
    return args_.partial_sums + int64_t{block_of(pair) * kRanges + range} * (kTileRows * kRangeWidth) +
           place_.group * ptx::kWarpgroupThreads + place_.thread;
  }
  __device__ static uint32_t at(int b, int i) { return static_cast<uint32_t>(b * (kN / 2) + i) * kThreads; }
  __device__ uint32_t* flag(uint32_t pair) const { return shares_ + block_of(pair) * kNumGroups + place_.group; }

  // Until the other ranges' sums are there, each pair watched by a lane of its own. All blocks of the grid run at once, one
  // per multiprocessor, and begin with what others wait for: only a device that is not its own any more makes it false.
  __device__ bool wait_for_others() const {
    bool late = false;
    const uint32_t range = tile_.end_range + place_.thread;
    if (range < kRanges && schedule_.share_begin(pair_of(range)) == tile_.item * kRanges + range) {
      uint32_t* watched = flag(pair_of(range));
      const uint64_t begin = gpu::clock_ns();
      while (gpu::load_acquire<gpu::Scope::device>(watched) == 0 && !late) late = gpu::clock_ns() - begin > kMaxWaitNs;
      gpu::store_relaxed<gpu::Scope::device>(watched, 0);
      if (late) report_late(status_);
    }
    return !ptx::sync_threads_or(1 + static_cast<int>(place_.group), ptx::kWarpgroupThreads, late);
  }

  // As many ranges' loads at a time as registers hold.
  __device__ void add_others(float (&total)[kGroupBlocks][kN / 2]) const {
    constexpr uint32_t kBatch = 32 / kN;
    float other[kBatch][kGroupBlocks][kN / 2];
    for (uint32_t first = tile_.end_range; first < kRanges; first += kBatch) {
#pragma unroll
      for (uint32_t r = 0; r < kBatch; ++r) {
        const bool exists = first + r < kRanges;
        const float* from = partials(pair_of(exists ? first + r : first), exists ? first + r : first);
        for_each([&](int b, int i) { other[r][b][i] = exists ? __ldcg(from + at(b, i)) : 0.0f; });
      }
#pragma unroll
      for (uint32_t r = 0; r < kBatch; ++r) for_each([&](int b, int i) { total[b][i] += other[r][b][i]; });
    }
  }

  const WgmmaArgs& args_;
  const Schedule& schedule_;
  uint32_t* shares_;
  Status* status_;
  const Tile& tile_;
  const Place& place_;
};

}  // namespace mixlane::experts_gpu
