// The counts of all blocks in global memory: how the blocks of a cooperative launch learn where their pairs go.
#pragma once

#include "ops/align/plan.cuh"

namespace mixlane::align_gpu {

// Counts of all blocks: [num_codes][num_blocks], then the totals per code, then (count, first) of reported pairs per block.
struct Matrix {
  uint32_t* counts;
  uint32_t* totals;
  uint32_t* faults;

  __host__ __device__ static int64_t words(uint32_t num_codes, uint32_t num_blocks) {
    return (int64_t{num_codes} + 2) * num_blocks + num_codes;
  }
  __device__ Matrix(uint32_t* workspace, uint32_t num_codes, uint32_t num_blocks)
      : counts(workspace), totals(counts + num_codes * num_blocks), faults(totals + num_codes) {}
};

// By one thread, the block's reported pairs.
template <class Tile>
__device__ void publish_faults(const Tile& tile, const Matrix& matrix) {
  if (threadIdx.x != 0) return;
  matrix.faults[2 * blockIdx.x] = tile.facts->fault_count;
  matrix.faults[2 * blockIdx.x + 1] = tile.facts->fault_first;
}

// This block's column of the matrix: from tile.totals, or of this thread's codes.
template <class Tile>
__device__ void publish_counts(const KernelArgs& args, const Tile& tile, const Matrix& matrix) {
  for (uint32_t code = threadIdx.x; code < args.num_codes; code += Tile::kThreads)
    matrix.counts[code * gridDim.x + blockIdx.x] = tile.totals[code];
  publish_faults(tile, matrix);
}
template <class Tile>
__device__ void publish_counts(const KernelArgs& args, const Tile& tile, const Matrix& matrix, const Quad& counts) {
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t code = threadIdx.x * 4 + j;
    if (code < args.num_codes) matrix.counts[code * gridDim.x + blockIdx.x] = counts.of[j];
  }
  publish_faults(tile, matrix);
}

// Sums over the blocks before, in place, and totals: a wave per code, or per kCodes, the first `num_waves` waves of all
// blocks in turn. Every one of them goes as many rounds: waves may be parts of the hardware's, whose threads shuffle
// together. kBatch: of a lane; 10 are 320 blocks with waves of 32.
template <class Plan, uint32_t kCodes = 1, uint32_t kBatch = 10>
__device__ void sum_columns(const Matrix& matrix, uint32_t num_codes, uint32_t num_waves = Plan::kWaves) {
  using Wave = typename Plan::Wave;
  const uint32_t num_blocks = gridDim.x;
  for (uint32_t round = 0; round < num_codes; round += kCodes * num_waves * num_blocks) {
    uint32_t* columns[kCodes];
    bool has_code[kCodes];
    uint32_t below[kCodes] = {};
#pragma unroll
    for (uint32_t c = 0; c < kCodes; ++c) {
      const uint32_t code = round + (c * num_waves + Wave::index_in_block()) * num_blocks + blockIdx.x;
      has_code[c] = code < num_codes;
      columns[c] = matrix.counts + (has_code[c] ? code : 0) * num_blocks;
    }
#pragma unroll 1
    for (uint32_t base = 0; base < num_blocks; base += kBatch * Plan::kWave) {
      // A lane sums neighbours.
      const uint32_t own = min((num_blocks - base + Plan::kWave - 1) / Plan::kWave, kBatch);
      const uint32_t first = base + Wave::lane() * own;
      const uint32_t end = min(first + own, num_blocks);
      uint32_t counts[kCodes][kBatch];
      uint32_t sums[kCodes] = {};
      uint32_t inclusive[kCodes];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
#pragma unroll
        for (uint32_t c = 0; c < kCodes; ++c)
          counts[c][i] = has_code[c] && first + i < end ? gpu::load_relaxed<gpu::Scope::device>(columns[c] + first + i) : 0;
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
#pragma unroll
        for (uint32_t c = 0; c < kCodes; ++c) sums[c] += counts[c][i];
      Wave::inclusive_sums(sums, inclusive);
#pragma unroll
      for (uint32_t c = 0; c < kCodes; ++c) {
        uint32_t before = below[c] + inclusive[c] - sums[c];
        below[c] += Wave::shuffle(inclusive[c], Plan::kWave - 1);
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
          if (has_code[c] && first + i < end) gpu::store_relaxed<gpu::Scope::device>(columns[c] + first + i, before);
          before += counts[c][i];
        }
      }
    }
#pragma unroll
    for (uint32_t c = 0; c < kCodes; ++c) {
      const uint32_t code = round + (c * num_waves + Wave::index_in_block()) * num_blocks + blockIdx.x;
      if (has_code[c] && Wave::lane() == 0) gpu::store_relaxed<gpu::Scope::device>(matrix.totals + code, below[c]);
    }
  }
}

// Where this block's first pair of each of the thread's codes goes.
template <class Tile>
__device__ Quad plan_block(const KernelArgs& args, const Tile& tile, const Matrix& matrix) {
  Quad total;
  Quad before;
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t code = threadIdx.x * 4 + j;
    if (code >= args.num_codes) continue;
    total.of[j] = gpu::load_relaxed<gpu::Scope::device>(matrix.totals + code);
    before.of[j] = gpu::load_relaxed<gpu::Scope::device>(matrix.counts + code * gridDim.x + blockIdx.x);
  }
  Quad slots;
  tile.plan_slots(total, args, slots);
  slots.add(before);
  return slots;
}

}  // namespace mixlane::align_gpu
