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
inline constexpr uint32_t kRowBytes = 128;

// In front of the stages in shared memory.
struct Fixed {
  Plan plan;
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
};

// Where tiles are turned from columns of registers to rows of memory, kTokens at a time, and floats per token.
template <Product kProduct, Operands kOperands>
struct Staging {
  static constexpr bool kQuantises = kProduct != Product::down && has_token_groups(kOperands);
  static constexpr uint32_t kTokens = 32;
  static constexpr uint32_t kOutputBytes = kQuantises && kProduct == Product::gate_up ? 64 : 128;  // of a warpgroup's row
  // Codes are written byte by byte: the padding keeps lanes of different tokens in different banks.
  static constexpr uint32_t kPitch = kOutputBytes + (kQuantises ? 16 : 0);
  static constexpr uint32_t kGroupBytes = kTokens * kPitch;
  static constexpr uint32_t kRowBytes = kNumGroups * kGroupBytes;
  // Per token: one of each warpgroup, one of each warp.
  static constexpr uint32_t kFloats =
      kOperands == Operands::bf16 || kOperands == Operands::e2m1 ? 0 : kNumGroups + kNumGroups * 4;
};

// Scales in a stage, in words. Of tokens with groups one each. Of weights, e4m3_block: three of the blocks of 128 rows that
// a tile meets, one not used; e2m1: the four bytes of each row; e2m1_e4m3: FoldedScales of each row.
template <Operands kOperands>
struct StageScales {
  static constexpr bool kAny = has_token_groups(kOperands) || is_packed(kOperands);
  static constexpr uint32_t kPerToken = has_token_groups(kOperands) ? 1 : 0;
  static constexpr uint32_t kOfWeights = kOperands == Operands::e4m3_block  ? 4
                                         : kOperands == Operands::e2m1      ? kTileRows
                                         : kOperands == Operands::e2m1_e4m3 ? 2 * kTileRows
                                                                            : 0;
  // Of the warp that copies them: a lane's copies, or what it wrote, or both.
  static constexpr uint32_t kArrivals = kOperands == Operands::e2m1_e4m3 ? 64 : kAny ? 32 : 0;
};

// Besides: what the warp that copies the scales of packed weights keeps in shared memory, and a table for their decoding.
template <Operands kOperands>
struct ScalesWorkspace {
  static constexpr uint32_t kRawBytes =
      !is_packed(kOperands) ? 0 : kTileRows * (kOperands == Operands::e2m1 ? 3 * 16 : 4 * 20);
  static constexpr uint32_t kTableBytes = kOperands == Operands::e2m1_e4m3 ? 256 * sizeof(uint2) : 0;
  static constexpr uint32_t kBytes = kRawBytes + kTableBytes;
};

struct Shared {
  Fixed* fixed;
  std::byte* stages;
  // Behind the stages, once the plan is made:
  float* scales;        // of the stages
  float* token_floats;  // [Staging::kFloats, max_width]
  std::byte* staging;
  std::byte* scales_workspace;

  __device__ explicit Shared(std::byte* memory) : fixed(reinterpret_cast<Fixed*>(memory)), stages(memory + fixed_bytes()) {}
  template <Product kProduct, Operands kOperands>
  __device__ void place() {
    const Plan& plan = fixed->plan;
    staging = stages + plan.num_stages * Step<kOperands>::stage_bytes(plan.max_width);
    scales_workspace = staging + Staging<kProduct, kOperands>::kRowBytes;
    token_floats = reinterpret_cast<float*>(scales_workspace + ScalesWorkspace<kOperands>::kBytes);
    scales = token_floats + Staging<kProduct, kOperands>::kFloats * plan.max_width;
    scale_floats = plan.max_width * StageScales<kOperands>::kPerToken + StageScales<kOperands>::kOfWeights;
  }
  uint32_t scale_floats;  // per stage
  __device__ static constexpr uint32_t fixed_bytes() { return round_up(sizeof(Fixed), 1024); }
};

// One user's walk around the ring.
template <Operands kOperands>
class Pipeline {
 public:
  __device__ explicit Pipeline(const Shared& shared)
      : fixed_(shared.fixed),
        stages_(shared.stages),
        scales_(shared.scales),
        scale_floats_(shared.scale_floats),
        num_stages_(shared.fixed->plan.num_stages),
        width_(shared.fixed->plan.max_width),
        stage_bytes_(Step<kOperands>::stage_bytes(width_)) {}

  __device__ std::byte* weights() const { return stages_ + stage_ * stage_bytes_; }
  __device__ std::byte* tokens() const { return weights() + Step<kOperands>::kWeightBytes; }
  // Between a token's rows of 128 bytes.
  __device__ uint32_t token_bytes() const { return Step<kOperands>::token_bytes(width_); }
  __device__ float* scales() const { return scales_ + stage_ * scale_floats_; }
  __device__ float* token_scales() const { return scales() + StageScales<kOperands>::kOfWeights; }
  __device__ uint64_t* full() const { return &fixed_->full[stage_]; }
  __device__ uint64_t* empty() const { return &fixed_->empty[stage_]; }
  __device__ void wait_empty() const { ptx::mbarrier_wait(empty(), phase_ ^ 1); }
  // The same for all lanes.
  __device__ bool is_full() const { return __all_sync(~0u, ptx::mbarrier_test(full(), phase_)); }
  __device__ void wait_full() const { ptx::mbarrier_wait(full(), phase_); }
  __device__ void advance() {
    if (++stage_ == num_stages_) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

 private:
  Fixed* fixed_;
  std::byte* stages_;
  float* scales_;
  uint32_t scale_floats_;
  uint32_t num_stages_, width_, stage_bytes_;
  uint32_t stage_ = 0;
  uint32_t phase_ = 0;
};

// Arrivals that end the empty phase of a stage: of each multiplying warp of both blocks, because either block's weights may
// go to both. Warps, not warpgroups: each has read scales or packed weights for itself.
inline constexpr uint32_t kEmptyArrivals = kNumGroups * (ptx::kWarpgroupThreads / 32) * kClusterBlocks;

// A value that the compiler takes for another one each time, so that what follows from it is worked out where it is needed
// and not kept in registers over all stages or tiles.
__device__ inline uint32_t unknown(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// By a warp that has read a stage.
__device__ inline void release_stage(const uint64_t* empty) {
  if (threadIdx.x % 32 < kClusterBlocks) ptx::mbarrier_arrive_cluster(ptx::map_shared(empty, threadIdx.x % 32));
}

}  // namespace mixlane::experts_gpu
