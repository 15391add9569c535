// align.none: so few pairs that no counter per expert is worth its zeroing: every pair finds its slot by looking at all
// others. The time does not depend on the number of experts (unless their counts are asked for).
#pragma once

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

inline constexpr int kMaxNonePairs = 128;

// A pair's place, as all blocks know it.
struct PlacedPairs {
  uint4 codes[kMaxNonePairs / 4];    // kNoCode behind the last pair
  uint4 openers[kMaxNonePairs / 4];  // the code of a pair that is the first of an output block, else kNoCode
  uint32_t slots[kMaxNonePairs];
  uint32_t ends[kMaxNonePairs];  // of the pads behind a pair; at most slot + 1 if there are none
};

__device__ inline uint32_t count_below(const uint4* codes, uint32_t num_pairs, uint32_t code) {
  uint32_t count = 0;
#pragma unroll 4
  for (uint32_t q = 0; q < (num_pairs + 3) / 4; ++q) {
    const uint4 four = codes[q];
    count += (four.x < code) + (four.y < code) + (four.z < code) + (four.w < code);
  }
  return count;
}

__device__ inline void write_none_summary(const KernelArgs& args, const PlacedPairs& placed, uint32_t num_pairs) {
  const uint32_t first_code = args.source.bucket ? 1 : 0;
  for (uint32_t e = threadIdx.x; e <= args.source.num_groups; e += blockDim.x) {
    const uint32_t code = e + first_code;
    if (args.out.expert_offsets)
      args.out.expert_offsets[e] =
          static_cast<int32_t>(count_below(placed.openers, num_pairs, code) * args.by_block.divisor);
    if (args.out.expert_counts && e < args.source.num_groups)
      args.out.expert_counts[e] =
          static_cast<int32_t>(count_below(placed.codes, num_pairs, code + 1) - count_below(placed.codes, num_pairs, code));
  }
}

// Each thread below kMaxNonePairs places one pair. Returns the number of output blocks.
__device__ inline uint32_t place_pairs(const KernelArgs& args, uint32_t code, uint32_t num_pairs, PlacedPairs& placed) {
  const uint32_t pair = threadIdx.x;
  const uint32_t block = args.by_block.divisor;
  reinterpret_cast<uint32_t*>(placed.codes)[pair] = code;
  __syncthreads();
  uint32_t rank = 0;
  uint32_t total = 0;
#pragma unroll 4
  for (uint32_t q = 0; q < (num_pairs + 3) / 4; ++q) {
    const uint4 four = placed.codes[q];
    const uint32_t same[4] = {four.x == code, four.y == code, four.z == code, four.w == code};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      total += same[j];
      rank += 4 * q + j < pair ? same[j] : 0;
    }
  }
  const uint32_t block_in_group = gpu::divide(rank, args.by_block);
  const bool opens = code != kNoCode && rank == block_in_group * block;
  reinterpret_cast<uint32_t*>(placed.openers)[pair] = opens ? code : kNoCode;
  const auto num_blocks = static_cast<uint32_t>(__syncthreads_count(opens));
  if (code != kNoCode) {
    const uint32_t first_block = count_below(placed.openers, num_pairs, code);
    const uint32_t slot = first_block * block + rank;
    placed.slots[pair] = slot;
    placed.ends[pair] = rank + 1 == total ? (first_block + block_in_group + 1) * block : 0;
    if (opens && blockIdx.x == 0 && args.out.block_experts)
      args.out.block_experts[first_block + block_in_group] = static_cast<int32_t>(code) - (args.source.bucket ? 1 : 0);
  }
  return num_blocks;
}

template <int kWave, bool kPlain>
__global__ void __launch_bounds__(kMaxNonePairs) align_none(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  __shared__ PlacedPairs placed;
  __shared__ uint32_t fault_count;
  __shared__ uint32_t fault_first;
  gpu::prefetch_args(args);
  if (threadIdx.x == 0) {
    fault_count = 0;
    fault_first = ~0u;
  }
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t num_counted = count_pairs(args.source);
  Faults faults;
  uint32_t code = kNoCode;
  if (threadIdx.x < num_counted)
    code = code_of<kPlain>(args.source, load_id<kPlain>(args.source, threadIdx.x), threadIdx.x, faults);
  const uint32_t num_blocks = place_pairs(args, code, num_counted, placed);
  if (faults.count != 0) {
    atomicAdd(&fault_count, 1u);
    atomicMin(&fault_first, threadIdx.x);
  }
  const uint32_t first_expert_code = args.source.bucket ? 1 : 0;
  const auto num_kept = static_cast<uint32_t>(__syncthreads_count(code != kNoCode && code >= first_expert_code));

  const uint32_t first = blockIdx.x * kMaxNonePairs + threadIdx.x;
  const uint32_t step = gridDim.x * kMaxNonePairs;
  for (uint32_t pair = first / kWave; pair < num_counted; pair += step / kWave) {
    if (reinterpret_cast<const uint32_t*>(placed.codes)[pair] == kNoCode) continue;
    write_pads<kWave>(args, placed.slots[pair] + 1 + threadIdx.x % kWave, placed.ends[pair]);
  }
  for (uint32_t block = num_blocks + first; block < args.out.num_blocks; block += step) args.out.block_experts[block] = -1;
  if (blockIdx.x == 0) {
    if (threadIdx.x < num_counted) {
      if (code != kNoCode) write_slot(args, placed.slots[threadIdx.x], threadIdx.x);
      if (args.out.pair_slots)
        write_pair_slot(args, threadIdx.x, code != kNoCode, code != kNoCode ? placed.slots[threadIdx.x] : 0);
    }
    if (threadIdx.x == 0) {
      args.out.num_padded[0] = static_cast<int32_t>(num_blocks * args.by_block.divisor);
      args.out.num_padded[1] = static_cast<int32_t>(num_kept);
      report_faults(args, fault_count, fault_first);
    }
    write_none_summary(args, placed, num_counted);
  }
  fill_zeros(args, first, step);
}

}  // namespace mixlane::align_gpu
