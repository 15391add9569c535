// How the blocks of one launch of experts.wgmma learn that an expert's activated rows are there, so that `down` begins where
// they are and not where the whole first product is.
#pragma once

#include "ops/experts/wgmma/products.cuh"

namespace mixlane::experts_gpu {

// Blocks wait only for what others do before they wait themselves, and all of a grid run at once, one per multiprocessor:
// this long only on a device that is not its own any more.
inline constexpr uint64_t kMaxWaitNs = 30ull * 1000 * 1000 * 1000;

__device__ inline void report_late(Status* status) {
  if (!status || status->code != ErrorCode::ok) return;
  status->code = ErrorCode::internal;
  status->waited_us = kMaxWaitNs / 1000;
}

// A multiplying warp's side. It tells of tiles two at a time and when the next one's products are made: a release takes a
// microsecond or two while weights stream, more if the tile's stores are not out yet.
class StoredTiles {
 public:
  __device__ explicit StoredTiles(uint32_t* finished) : finished_(finished) {}
  // This warp's part of a tile with rows.
  __device__ void add(const Tile& tile) {
    const bool has_rows = tile.num_rows > 0;
    before_ = has_rows ? expert_ : before_;
    expert_ = has_rows ? tile.expert : expert_;
  }
  __device__ void tell_if_two() { tell_if(before_ != kNone); }
  __device__ void tell() { tell_if(expert_ != kNone); }

 private:
  static constexpr uint32_t kNone = ~0u;

  // One branch, of one lane: with branches of the warp around it the compiler no longer sees that all lanes are at the same
  // stage, and stages leave the uniform registers (50 instructions more in each stage of wide fp8 tiles).
  __device__ void tell_if(bool now) {
    __syncwarp();
    if (now && threadIdx.x % 32 == 0) {
      gpu::fetch_add_release<gpu::Scope::device>(finished_ + expert_, before_ == expert_ ? 2 : 1);
      if (before_ != kNone && before_ != expert_) gpu::fetch_add_release<gpu::Scope::device>(finished_ + before_, 1);
    }
    expert_ = now ? kNone : expert_;
    before_ = now ? kNone : before_;
  }

  uint32_t* finished_;
  uint32_t expert_ = kNone, before_ = kNone;
};

// The side of a warp that copies activated rows or their scales.
class ActivatedRows {
 public:
  static constexpr uint32_t kWarpsPerTile = kNumGroups * 4;

  __device__ ActivatedRows(const WgmmaLaunch& launch, const Shared& shared) : launch_(launch), shared_(shared) {}

  // By all lanes of the warp. One look at all experts: once all are there, nobody need ask again for every tile.
  __device__ void wait(uint32_t expert) {
    if (all_there_) return;
    bool there = false, all = true;
    for (uint32_t first = threadIdx.x % 32; first < shared_.num_experts; first += kLooks * 32) {
      // All on their way before the first is wanted: each takes microseconds while weights stream.
      uint32_t finished[kLooks];
#pragma unroll
      for (uint32_t i = 0; i < kLooks; ++i)
        finished[i] =
            gpu::load_relaxed<gpu::Scope::device>(launch_.state->finished + min(first + i * 32, shared_.num_experts - 1));
#pragma unroll
      for (uint32_t i = 0; i < kLooks; ++i) {
        const uint32_t e = min(first + i * 32, shared_.num_experts - 1);
        const bool is_there = finished[i] >= num_warps(e);
        all = all && is_there;
        there = there || (is_there && e == expert);
      }
    }
    all_there_ = __all_sync(~0u, all);
    if (!__any_sync(~0u, there)) wait_for_one(expert);
    // What a lane has seen holds for all of them.
    __threadfence();
    __syncwarp();
    ptx::fence_async_proxy_global();
  }

  // By all lanes, once: it waits no more. The last of all warps clears what they waited for.
  __device__ void leave(uint32_t warps_per_block) const {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t before = 0;
    __syncwarp();
    if (lane == 0) before = gpu::fetch_add_release<gpu::Scope::device>(&launch_.state->num_left, 1);
    if (__shfl_sync(~0u, before, 0) != gridDim.x * warps_per_block - 1) return;
    __threadfence();
    for (uint32_t e = lane; e < shared_.num_experts; e += 32) launch_.state->finished[e] = 0;
    if (lane == 0) launch_.state->num_left = 0;
  }

 private:
  static constexpr uint32_t kLooks = 4;

  // One word is asked for again and again: those of all come later, and are in the way of who adds to them.
  __device__ void wait_for_one(uint32_t expert) {
    const uint32_t wanted = num_warps(expert);
    const uint64_t begin = gpu::clock_ns();
    while (!__any_sync(~0u, is_finished(expert, wanted))) {
      if (!__any_sync(~0u, gpu::clock_ns() - begin > kMaxWaitNs)) continue;
      fixed().late = 1;
      report_late(launch_.status);
      all_there_ = true;  // rows are NaN from here on: no reason to wait for more of them
      return;
    }
  }
  __device__ bool is_finished(uint32_t expert, uint32_t wanted) const {
    return gpu::load_relaxed<gpu::Scope::device>(launch_.state->finished + expert) >= wanted;
  }
  // That store an expert's activated rows.
  __device__ uint32_t num_warps(uint32_t expert) const {
    const auto rows = static_cast<uint32_t>(ExpertLists{shared_.num_experts}.counts()[expert]);
    return kWarpsPerTile * fixed().plan.products[0].tiles_of(rows);
  }

  const WgmmaLaunch& launch_;
  const Shared& shared_;
  bool all_there_ = false;
};

}  // namespace mixlane::experts_gpu
