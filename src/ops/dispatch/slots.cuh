// Which ranks a token's row goes to, and in which slots of their windows: prefix sums in token order, found by every
// block for itself from the ids of the tokens before its own.
#pragma once

#include "ops/dispatch/call.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kWave = gpu::kHardwareWave;
inline constexpr uint32_t kMaxWaves = kMaxThreads / kWave;

__device__ inline uint32_t owner_of(const ExpertOwners& owners, uint32_t expert) {
  if (owners.table) return owners.table[expert];
  if (expert < owners.larger_end) return gpu::divide(expert, owners.by_larger);
  return owners.num_larger + gpu::divide(expert - owners.larger_end, owners.by_smaller);
}

// Calls body(k, id) for a token's ids.
template <class Body>
__device__ void for_each_id(const DispatchKernelArgs& args, uint32_t token, Body&& body) {
  const int32_t* const ids = args.ids + int64_t{token} * args.num_topk;
  if (args.wide_ids) {
#pragma unroll 2
    for (uint32_t k = 0; k < args.num_topk; k += 4) {
      const int4 four = *reinterpret_cast<const int4*>(ids + k);
      body(k, four.x);
      body(k + 1, four.y);
      body(k + 2, four.z);
      body(k + 3, four.w);
    }
  } else {
#pragma unroll 4
    for (uint32_t k = 0; k < args.num_topk; ++k) body(k, ids[k]);
  }
}

// Bit per rank that owns one of the token's experts.
__device__ inline uint32_t ranks_of(const DispatchKernelArgs& args, uint32_t token) {
  uint32_t ranks = 0;
  for_each_id(args, token, [&](uint32_t, int32_t id) {
    if (static_cast<uint32_t>(id) < args.owners.num_experts) ranks |= 1u << owner_of(args.owners, static_cast<uint32_t>(id));
  });
  return ranks;
}

// Lane r: how many of the wave's tokens go to rank r.
__device__ inline uint32_t count_by_rank(uint32_t ranks, int num_ranks) {
  uint32_t mine = 0;
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r) {
    if (r >= num_ranks) break;
    const auto having = static_cast<uint32_t>(HardwareWave::count(HardwareWave::ballot((ranks >> r & 1u) != 0)));
    if (static_cast<int>(HardwareWave::lane()) == r) mine = having;
  }
  return mine;
}

// The slots of a wave's worth of a block's own tokens, lane by lane; every wave holds the same.
struct Slots {
  uint32_t next[kMaxRanks];  // of each rank, behind the tokens so far
  uint32_t ranks = 0;        // of this lane's token, those left out and without room not among them
  int32_t slot[kMaxRanks];   // of this lane's token; -1 = no row
};

// All threads of the block. `shared`: [kMaxWaves][kMaxRanks].
__device__ inline void count_tokens_before(const DispatchKernelArgs& args, uint32_t begin, uint32_t (*shared)[kMaxRanks],
                                           Slots& slots) {
  const int num_ranks = args.exchange.window.num_ranks;
  const uint32_t lane = HardwareWave::lane(), wave = HardwareWave::index_in_block(), num_waves = blockDim.x / kWave;
#pragma unroll
  for (uint32_t& next : slots.next) next = 0;
  if (begin == 0) return;
  uint32_t mine = 0;
  for (uint32_t first = wave * kWave; first < begin; first += blockDim.x) {
    const uint32_t token = first + lane;
    mine += count_by_rank(token < begin ? ranks_of(args, token) : 0, num_ranks);
  }
  if (lane < kMaxRanks) shared[wave][lane] = mine;
  __syncthreads();
  uint32_t sum = 0;
  if (lane < kMaxRanks)
    for (uint32_t w = 0; w < num_waves; ++w) sum += shared[w][lane];
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r) slots.next[r] = HardwareWave::shuffle(sum, r);
}

// For the tokens [first, first + kWave), those from `end` on not counting. Whole waves.
__device__ inline void take_slots(const DispatchKernelArgs& args, const Call& call, uint32_t first, uint32_t end,
                                  Slots& slots) {
  const Window& window = args.exchange.window;
  const uint32_t token = first + HardwareWave::lane();
  const uint32_t wanted = token < end ? ranks_of(args, token) : 0;
  slots.ranks = 0;
#pragma unroll
  for (int r = 0; r < kMaxRanks; ++r) {
    slots.slot[r] = -1;
    if (r >= window.num_ranks) continue;
    const auto having = HardwareWave::ballot((wanted >> r & 1u) != 0);
    const uint32_t slot = slots.next[r] + static_cast<uint32_t>(HardwareWave::count(having & HardwareWave::lanes_below()));
    if ((wanted >> r & 1u) != 0 && slot < static_cast<uint32_t>(window.capacity) && call.sends_to(r)) {
      slots.slot[r] = static_cast<int32_t>(slot);
      slots.ranks |= 1u << r;
    }
    slots.next[r] += static_cast<uint32_t>(HardwareWave::count(having));
  }
}

}  // namespace mixlane::exchange_gpu
