// Sums of narrow tiles, range by range of k, by one block or by several.
#pragma once

#include "ops/experts/wgmma_products.cuh"

namespace mixlane::experts_gpu {

template <int kN>
class RangeSums {
 public:
  __device__ RangeSums(const WgmmaArgs& args, const Plan& plan, const Tile& tile, const Place& place)
      : args_(args), plan_(plan), tile_(tile), place_(place) {}

  // multiply(first, end) makes the sums of these steps. True: `sums` are the tile's; false: they went to the block that has
  // its first part.
  template <class Multiply>
  __device__ bool add_up(Multiply&& multiply, Accumulators<kN>& sums) const {
    float total[kGroupBlocks][kN / 2] = {};
    for (uint32_t range = tile_.first_range; range < tile_.end_range; ++range) {
      const uint32_t first = plan_.range_begin(range), end = plan_.range_begin(range + 1);
      if (first < end) multiply(first, end);
      if (tile_.first_range > 0)
        for_each([&](int b, int i) { partials(range)[(b * (kN / 2) + i) * kThreads] = first < end ? sums[b][i] : 0.0f; });
      else if (first < end)
        for_each([&](int b, int i) { total[b][i] += sums[b][i]; });
    }
    if (tile_.first_range > 0) {
      __threadfence();
      sync_group();
      if (place_.thread == 0)
        gpu::store_release<gpu::Scope::device>(flag(tile_.first_range / (kRanges / plan_.num_parts)), 1);
      return false;
    }
    for (uint32_t part = 1; part < plan_.num_parts; ++part) wait_for(part);
    if (plan_.num_parts > 1) add_others(total);
    for_each([&](int b, int i) { sums[b][i] = total[b][i]; });
    return true;
  }

 private:
  // As many ranges' loads at a time as registers hold.
  __device__ void add_others(float (&total)[kGroupBlocks][kN / 2]) const {
    constexpr uint32_t kBatch = 32 / kN;
    float other[kBatch][kGroupBlocks][kN / 2];
    for (uint32_t first = tile_.end_range; first < kRanges; first += kBatch) {
#pragma unroll
      for (uint32_t r = 0; r < kBatch; ++r)
        for_each([&](int b, int i) {
          other[r][b][i] = first + r < kRanges ? __ldcg(partials(first + r) + (b * (kN / 2) + i) * kThreads) : 0.0f;
        });
#pragma unroll
      for (uint32_t r = 0; r < kBatch; ++r) for_each([&](int b, int i) { total[b][i] += other[r][b][i]; });
    }
  }

  static constexpr uint32_t kThreads = kNumGroups * ptx::kWarpgroupThreads;

  template <class Body>
  __device__ static void for_each(Body&& body) {
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) body(b, i);
  }

  __device__ void sync_group() const { ptx::sync_threads(1 + static_cast<int>(place_.group), ptx::kWarpgroupThreads); }
  __device__ uint32_t shared_tile() const { return tile_.item * kClusterBlocks + ptx::cluster_rank(); }
  // This thread's first value of a range; the next ones are kThreads further each.
  __device__ float* partials(uint32_t range) const {
    return args_.partial_sums + int64_t{shared_tile() * kRanges + range} * (kTileRows * kRangeWidth) +
           place_.group * ptx::kWarpgroupThreads + place_.thread;
  }
  __device__ uint32_t* flag(uint32_t part) const {
    return args_.partial_flags + (shared_tile() * (plan_.num_parts - 1) + part - 1) * kNumGroups + place_.group;
  }
  // All blocks of the grid run at once, one per multiprocessor, so that the other one is on its way.
  __device__ void wait_for(uint32_t part) const {
    if (place_.thread == 0) {
      while (gpu::load_acquire<gpu::Scope::device>(flag(part)) == 0) {
      }
      gpu::store_relaxed<gpu::Scope::device>(flag(part), 0);
    }
    sync_group();
  }

  const WgmmaArgs& args_;
  const Plan& plan_;
  const Tile& tile_;
  const Place& place_;
};

}  // namespace mixlane::experts_gpu
