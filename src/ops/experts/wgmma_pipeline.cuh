// The ring of stages between the producers and the products of experts.wgmma, and what else its shared memory holds.
#pragma once

#include "gpu/ptx/cluster.cuh"
#include "gpu/ptx/copy.cuh"
#include "gpu/ptx/warpgroup.cuh"
#include "ops/experts/wgmma_plan.cuh"

namespace mixlane::experts_gpu {

namespace ptx = gpu::ptx;

inline constexpr uint32_t kNumGroups = 2;  // warpgroups that multiply, 128 rows of the tile each
inline constexpr uint32_t kNumThreads = (1 + kNumGroups) * ptx::kWarpgroupThreads;
inline constexpr uint32_t kRowBytes = 128;  // of k in a stage

// Behind the stages in shared memory.
struct Fixed {
  Plan plan;
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
};

struct Shared {
  std::byte* stages;
  float* scales;       // per stage and token, e4m3_block
  std::byte* staging;  // staging_bytes()
  Fixed* fixed;

  __device__ explicit Shared(std::byte* memory) : fixed(reinterpret_cast<Fixed*>(memory)) {
    stages = memory + round_up(sizeof(Fixed), 1024);
  }
  __device__ void place() {
    const Plan& plan = fixed->plan;
    staging = stages + plan.num_stages * plan.stage_bytes();
    scales = reinterpret_cast<float*>(staging + Plan::staging_bytes(plan.max_width));
  }
  static constexpr uint32_t rest_bytes() { return round_up(sizeof(Fixed), 1024); }
};

// One user's place in the ring.
struct Cursor {
  uint32_t stage = 0;
  uint32_t phase = 0;

  __device__ void advance(uint32_t num_stages) {
    if (++stage == num_stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct Pipeline {
  const Shared& shared;
  Cursor at{};

  __device__ explicit Pipeline(const Shared& shared_) : shared(shared_) {}
  __device__ std::byte* weights() const { return shared.stages + at.stage * shared.fixed->plan.stage_bytes(); }
  __device__ std::byte* tokens() const { return weights() + kWeightBytes; }
  __device__ float* scales() const { return shared.scales + at.stage * shared.fixed->plan.max_width; }
  __device__ uint64_t* full() const { return &shared.fixed->full[at.stage]; }
  __device__ uint64_t* empty() const { return &shared.fixed->empty[at.stage]; }
  __device__ void wait_empty() const { ptx::mbarrier_wait(empty(), at.phase ^ 1); }
  __device__ void wait_full() const { ptx::mbarrier_wait(full(), at.phase); }
  __device__ void advance() { at.advance(shared.fixed->plan.num_stages); }
};

// Arrivals that end the empty phase of a stage: of each multiplying warpgroup of both blocks, because either block's
// weights may go to both.
inline constexpr uint32_t kEmptyArrivals = kNumGroups * kClusterBlocks;

// By a warpgroup that has read a stage.
__device__ inline void release_stage(const uint64_t* empty) {
  if (threadIdx.x % ptx::kWarpgroupThreads < kClusterBlocks)
    ptx::mbarrier_arrive_cluster(ptx::map_shared(empty, threadIdx.x % ptx::kWarpgroupThreads));
}

}  // namespace mixlane::experts_gpu
