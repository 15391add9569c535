// Codes four to a thread, and the plan of the output: what every block finds out from the totals of all codes.
#pragma once

#include "ops/align/pairs.cuh"

namespace mixlane::align_gpu {

// Four neighbouring codes: what one thread handles in the passes over codes.
struct Quad {
  uint32_t of[4] = {0, 0, 0, 0};
  __device__ uint32_t sum() const { return of[0] + of[1] + of[2] + of[3]; }
  __device__ void add(const Quad& other) {
#pragma unroll
    for (int j = 0; j < 4; ++j) of[j] += other.of[j];
  }
};

__device__ inline Quad unpack_quad(uint2 packed) {
  return {{packed.x & 0xffffu, packed.x >> 16, packed.y & 0xffffu, packed.y >> 16}};
}
__device__ inline uint2 pack_quad(const Quad& quad) {
  return make_uint2(quad.of[0] | quad.of[1] << 16, quad.of[2] | quad.of[3] << 16);
}
// Where each of the codes starts, the first one at `start`.
__device__ inline Quad starts_of(uint32_t start, const Quad& counts) {
  Quad starts;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    starts.of[j] = start;
    start += counts.of[j];
  }
  return starts;
}

__host__ __device__ constexpr uint32_t num_quads(uint32_t num_codes) { return (num_codes + 3) / 4; }

// Facts of a block that one thread each writes.
struct alignas(16) BlockFacts {
  uint32_t num_kept;    // pairs with a slot, over all blocks
  uint32_t num_staged;  // of this block's tile
  uint32_t fault_count;
  uint32_t fault_first;
  uint32_t has_long_code;  // one whose output blocks are more than a wave's lanes
  uint32_t has_none;       // a pair without a code
};

__device__ inline void add_faults(BlockFacts* facts, const Faults& faults) {
  if (faults.count == 0) return;
  atomicAdd(&facts->fault_count, faults.count);
  atomicMin(&facts->fault_first, faults.first);
}

// Where codes' pairs go, the same in every block: what a block's threads, four codes each, find out together.
template <int kThreads_, int kWave_>
struct Plan {
  using Wave = gpu::Wave<kWave_>;
  static constexpr int kThreads = kThreads_;
  static constexpr int kWave = kWave_;
  static constexpr int kWaves = kThreads / kWave;

  // The block's shared memory.
  uint64_t* wave_sums;  // [2][kWaves]: of sum_below() and of plan_slots()
  BlockFacts* facts;
  uint32_t* offsets;  // [stride + 1]: first slot of each code, then the end
  uint32_t* totals;   // [stride]: pairs per code
  uint32_t* shift;    // [stride]: slot minus position in the tile
  uint32_t stride;
  std::byte* rest;  // what the kernel adds, aligned to 16

  __host__ __device__ static constexpr int64_t shared_bytes(uint32_t num_codes) {
    const int64_t padded = int64_t{num_quads(num_codes)} * 4;
    return kWaves * int64_t{16} + int64_t{sizeof(BlockFacts)} + (padded + 4) * 4 + padded * 4 * 2;
  }

  __device__ Plan(std::byte* shared, uint32_t num_codes) : stride(num_quads(num_codes) * 4) {
    wave_sums = reinterpret_cast<uint64_t*>(shared);
    facts = reinterpret_cast<BlockFacts*>(wave_sums + 2 * kWaves);
    offsets = reinterpret_cast<uint32_t*>(facts + 1);
    totals = offsets + stride + 4;
    shift = totals + stride;
    rest = shared + shared_bytes(num_codes);
  }

  __device__ void clear_facts() const {
    if (threadIdx.x == 0) *facts = {0, 0, 0, ~0u, 0, 0};
  }

  // `slots`: of the first pair in the tile of each of this thread's codes.
  __device__ void set_shift(const Quad& starts, const Quad& slots) const {
    if (threadIdx.x >= stride / 4) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) shift[threadIdx.x * 4 + j] = slots.of[j] - starts.of[j];
  }

  // Sum over the threads below this one, for those that hold codes. Contains one __syncthreads().
  __device__ uint32_t sum_below(uint32_t value) const { return sum_below(value, reinterpret_cast<uint32_t*>(wave_sums)); }

  template <class T>
  __device__ T sum_below(T value, T* sums) const {
    T inclusive = 0;
    if (wave_holds_codes()) {
      inclusive = Wave::inclusive_sum(value);
      if (Wave::lane() == kWave - 1) sums[Wave::index_in_block()] = inclusive;
    }
    __syncthreads();
    T below = inclusive - value;
    if (wave_holds_codes())
#pragma unroll 1
      for (uint32_t w = 0; w < Wave::index_in_block(); ++w) below += sums[w];
    return below;
  }

  // The first waves, whole ones of the hardware, do the passes over codes; the others only meet them at the barriers.
  __device__ bool wave_holds_codes() const { return threadIdx.x / gpu::kHardwareWave * gpu::kHardwareWave < stride / 4; }

  // From the totals of this thread's codes over all pairs: offsets, totals, facts->num_kept (complete after the caller's
  // next __syncthreads()), and the first slots of its codes. Returns the pairs of all codes below this thread's first.
  __device__ uint32_t plan_slots(const Quad& total, const KernelArgs& args, Quad& slots) const {
    return plan_slots<uint64_t>(total, args, slots, [&](uint64_t value) { return sum_below(value, wave_sums + kWaves); });
  }

  // The same with the caller's sum over the threads below this one. Sum: its upper half holds output blocks, the lower one
  // pairs.
  template <class Sum, class SumBelow>
  __device__ uint32_t plan_slots(const Quad& total, const KernelArgs& args, Quad& slots, SumBelow&& sum_below) const {
    constexpr int kHalf = sizeof(Sum) * 4;
    Quad blocks;
    const uint32_t first = threadIdx.x * 4;
    bool has_long_code = false;
#pragma unroll
    for (int j = 0; j < 4 && wave_holds_codes(); ++j) {
      blocks.of[j] = gpu::divide(total.of[j] + args.by_block.divisor - 1, args.by_block);
      has_long_code |= blocks.of[j] > kWave;
    }
    if (has_long_code) facts->has_long_code = 1;
    const Sum below = sum_below(static_cast<Sum>(Sum{blocks.sum()} << kHalf | total.sum()));
    const auto pairs_below = static_cast<uint32_t>(below & ((Sum{1} << kHalf) - 1));
    if (first < stride) {
      slots = starts_of(static_cast<uint32_t>(below >> kHalf), blocks);
      const uint32_t end = (slots.of[3] + blocks.of[3]) * args.by_block.divisor;
#pragma unroll
      for (int j = 0; j < 4; ++j) slots.of[j] *= args.by_block.divisor;
      *reinterpret_cast<uint4*>(offsets + first) = make_uint4(slots.of[0], slots.of[1], slots.of[2], slots.of[3]);
      *reinterpret_cast<uint4*>(totals + first) = make_uint4(total.of[0], total.of[1], total.of[2], total.of[3]);
      if (first + 4 == stride) {
        offsets[stride] = end;
        facts->num_kept = pairs_below + total.sum();
      }
    }
    return pairs_below;
  }

  __device__ void add_faults(const Faults& faults) const { align_gpu::add_faults(facts, faults); }
};

}  // namespace mixlane::align_gpu
