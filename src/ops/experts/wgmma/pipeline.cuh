// The ring of stages between the producers and the products of experts.wgmma, and what else its shared memory holds.
#pragma once

#include "gpu/ptx/cluster.cuh"
#include "gpu/ptx/copy.cuh"
#include "gpu/ptx/warpgroup.cuh"
#include "ops/experts/wgmma/plan.cuh"

namespace mixlane::experts_gpu {

namespace ptx = gpu::ptx;

inline constexpr uint32_t kRowBytes = 128;
inline constexpr uint32_t kMultiplyingWarps = kNumGroups * (ptx::kWarpgroupThreads / 32);

// Floats per token of the widest tile: one of each warpgroup and one of each warp that multiplies.
template <Operands kOperands>
inline constexpr uint32_t kTokenFloats =
    kOperands == Operands::bf16 || kOperands == Operands::e2m1 ? 0 : kNumGroups + kNumGroups * 4;

// Scales in a stage, in words. Of tokens with groups one each. Of weights, e4m3_block: three of the blocks of 128 rows that
// a tile meets, one not used; packed: the four bytes of each row, then, e2m1_e4m3, the largest of all rows or 0.
template <Operands kOperands>
struct StageScales {
  static constexpr bool kAny = has_token_groups(kOperands) || is_packed(kOperands);
  static constexpr uint32_t kPerToken = has_token_groups(kOperands) ? 1 : 0;
  static constexpr uint32_t kOfWeights = kOperands == Operands::e4m3_block  ? 4
                                         : kOperands == Operands::e2m1      ? kTileRows
                                         : kOperands == Operands::e2m1_e4m3 ? kTileRows + 4
                                                                            : 0;
  // Of the warp that copies them: a lane's copies, or what it wrote, or both.
  static constexpr uint32_t kArrivals = kOperands == Operands::e2m1_e4m3 ? 64 : kAny ? 32 : 0;
};

// Besides: what the warp that copies the scales of packed weights keeps in shared memory, and a table for their decoding.
template <Operands kOperands>
struct ScalesWorkspace {
  static constexpr uint32_t kRawBytes = is_packed(kOperands) ? kTileRows * 2 * 20 : 0;
  static constexpr uint32_t kTableBytes = kOperands == Operands::e2m1_e4m3 ? 256 * sizeof(uint2) : 0;
  static constexpr uint32_t kBytes = kRawBytes + kTableBytes;
};

// Packed weights as the tensor cores take them: slots of a row of 128 bytes for each of the tile's.
template <Operands kOperands>
struct Decoded {
  static constexpr uint32_t kSlotBytes = kTileRows * kRowBytes;
  static constexpr uint32_t kSlotsPerStage = Step<kOperands>::kTokenRows;
  static constexpr uint32_t kBytes = is_packed(kOperands) ? kDecodedSlots * kSlotBytes : 0;
};

// Of each multiplying warp: where rows of wide tiles pass on their way out. Packed weights need the memory for a stage more.
template <Operands kOperands>
inline constexpr uint32_t kPassingBytes = is_packed(kOperands) ? 0 : 8 * 128;

// What is behind Fixed in shared memory: for wide tiles passing rows or decoded weights; stages, workspaces, scales.
struct Shared {
  uint32_t num_experts;

  template <Operands kOperands>
  __device__ OtherBytes other_bytes() const {
    return {fixed_bytes() + ScalesWorkspace<kOperands>::kBytes,
            kMultiplyingWarps * kPassingBytes<kOperands> + Decoded<kOperands>::kBytes, kTokenFloats<kOperands> * 4,
            StageScales<kOperands>::kOfWeights * 4, StageScales<kOperands>::kPerToken * 4};
  }
  // By one thread, once the plan is made.
  template <Operands kOperands>
  __device__ void place_ring() const {
    const Plan& plan = fixed().plan;
    RingLayout& ring = fixed().ring;
    ring.num_stages = plan.num_stages;
    ring.apart = plan.apart;
    ring.stage_bytes = Step<kOperands>::stage_bytes(plan.max_width);
    ring.first_stage = fixed_bytes() + plan.wide_bytes;
    ring.first_scales = ring.first_stage + ring.num_stages * ring.stage_bytes + ScalesWorkspace<kOperands>::kBytes +
                        kTokenFloats<kOperands> * 4 * plan.max_width;
    ring.scale_bytes = 4 * (plan.max_width * StageScales<kOperands>::kPerToken + StageScales<kOperands>::kOfWeights);
  }
  // [kPassingBytes] of this warp, if there are wide tiles
  template <Operands kOperands>
  __device__ std::byte* passing_rows() const {
    return shared_memory() + fixed_bytes() + (threadIdx.x / 32 - ptx::kWarpgroupThreads / 32) * kPassingBytes<kOperands>;
  }
  // Between the stages and their scales.
  template <Operands kOperands>
  __device__ std::byte* scales_workspace() const {
    const RingLayout& ring = fixed().ring;
    return shared_memory() + ring.first_stage + ring.num_stages * ring.stage_bytes;
  }
  // [kTokenFloats, max_width]
  template <Operands kOperands>
  __device__ float* token_floats() const {
    return reinterpret_cast<float*>(scales_workspace<kOperands>() + ScalesWorkspace<kOperands>::kBytes);
  }
  __device__ Tiles tiles(uint32_t product) const { return {product, num_experts}; }

 private:
  __device__ uint32_t fixed_bytes() const { return round_up(sizeof(Fixed) + ExpertLists{num_experts}.bytes(), 1024); }
};

// One user's walk around the ring.
template <Operands kOperands>
class Pipeline {
 public:
  __device__ Pipeline() : ring_(fixed().ring) {}

  __device__ std::byte* weights() const { return shared_memory() + ring_.first_stage + stage_ * ring_.stage_bytes; }
  __device__ std::byte* tokens() const { return weights() + Step<kOperands>::kWeightBytes; }
  // Between a token's rows of 128 bytes.
  __device__ uint32_t token_bytes() const { return Step<kOperands>::token_bytes(fixed().plan.max_width); }
  // By one thread. There is room: see kTileSlots.
  __device__ void hand_over(const Tile& tile) {
    const uint32_t slot = num_tiles_++ % kTileSlots;
    fixed().tiles[slot] = tile;
    ptx::mbarrier_arrive(&fixed().handed_over[slot]);
  }
  // The place of the tile that was handed over next.
  __device__ uint32_t take_over() {
    const uint32_t slot = num_tiles_ % kTileSlots;
    ptx::mbarrier_wait(&fixed().handed_over[slot], num_tiles_++ / kTileSlots % 2);
    return slot;
  }
  __device__ float* scales() const {
    return reinterpret_cast<float*>(shared_memory() + ring_.first_scales + stage_ * ring_.scale_bytes);
  }
  __device__ float* token_scales() const { return scales() + StageScales<kOperands>::kOfWeights; }
  __device__ uint64_t* full() const { return &fixed().full[stage_]; }
  __device__ uint64_t* empty() const { return &fixed().empty[stage_]; }
  __device__ void wait_empty() const { ptx::mbarrier_wait(empty(), phase_ ^ 1); }
  // The same for all lanes.
  __device__ bool is_full() const { return __all_sync(~0u, ptx::mbarrier_test(full(), phase_)); }
  __device__ void wait_full() const { ptx::mbarrier_wait(full(), phase_); }
  // What release_stage() of a narrow tile wants.
  __device__ bool apart() const { return ring_.apart; }
  // The next slot of decoded weights: for who multiplies until advance_decoded(), for who decodes until it is filled.
  __device__ std::byte* decoded() const {
    return shared_memory() + ring_.first_stage - Decoded<kOperands>::kBytes + slot() * Decoded<kOperands>::kSlotBytes;
  }
  __device__ void wait_decoded() const { ptx::mbarrier_wait(&fixed().decoded[slot()], slot_phase()); }
  __device__ void wait_used() const { ptx::mbarrier_wait(&fixed().used[slot()], slot_phase() ^ 1); }
  // By a warp that has read a slot, or that has written it for the tensor cores.
  __device__ void release_decoded() const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&fixed().used[slot()]);
  }
  __device__ void publish_decoded() const {
    ptx::fence_async_proxy();
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&fixed().decoded[slot()]);
  }
  __device__ void advance_decoded() { ++num_decoded_; }
  // By each multiplying warp where a wide tile follows a narrow one: all stages before it were full. Who decodes waits for
  // it, as it does not hold the stages of narrow tiles and so may not go on by their phases.
  __device__ void begin_wide(const Tile& tile) const {
    if (tile.follows_narrow && threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&fixed().wide_begins);
  }
  __device__ void advance() {
    if (++stage_ == ring_.num_stages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

 private:
  __device__ uint32_t slot() const { return num_decoded_ % kDecodedSlots; }
  __device__ uint32_t slot_phase() const { return num_decoded_ / kDecodedSlots % 2; }

  const RingLayout ring_;
  uint32_t stage_ = 0;
  uint32_t phase_ = 0;
  uint32_t num_tiles_ = 0;
  uint32_t num_decoded_ = 0;
};

// Arrivals that end the empty phase of a stage: of each multiplying warp of both blocks, because either block's weights may
// go to both. Warps, not warpgroups: each has read scales or packed weights for itself.
inline constexpr uint32_t kEmptyArrivals = kMultiplyingWarps * kClusterBlocks;

// By a warp whose lanes have read a stage. `apart`: the plan's, which wide tiles need not look at.
__device__ inline void release_stage(uint64_t* empty, bool apart = false) {
  const uint32_t lane = threadIdx.x % 32;
  __syncwarp();
  if (apart) {
    if (lane == 0) ptx::mbarrier_arrive(empty, kClusterBlocks);
  } else if (lane < kClusterBlocks) {
    ptx::mbarrier_arrive_cluster(ptx::map_shared(empty, lane));
  }
}

}  // namespace mixlane::experts_gpu
