// align.cluster (sm_90): one cluster of blocks, a tile each; the blocks read each other's counts through the cluster's
// shared memory, so one cluster barrier stands where multi_phase needs two of the grid.
#pragma once

#include "gpu/ptx/cluster.cuh"
#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// Adds up the blocks' counts of this thread's codes: over all blocks, and over those before this one.
template <class Tile>
__device__ void sum_over_cluster(const Tile& tile, const uint2* block_counts, Quad& total, Quad& before) {
  if (threadIdx.x >= tile.stride / 4) return;
  const uint32_t own_rank = gpu::ptx::cluster_rank();
  constexpr uint32_t kBatch = 8;
  for (uint32_t base = 0; base < gridDim.x; base += kBatch) {
    uint2 counts[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i)
      counts[i] = gpu::ptx::load_cluster_pair(gpu::ptx::map_shared(block_counts + threadIdx.x, base + i));
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const Quad quad = unpack_quad(counts[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        total.of[j] += quad.of[j];
        before.of[j] += base + i < own_rank ? quad.of[j] : 0;
      }
    }
  }
}

// By one wave of one block: the reported pairs of all blocks.
template <class Tile>
__device__ void report_cluster_faults(const KernelArgs& args, const Tile& tile) {
  uint32_t count = 0;
  uint32_t first = ~0u;
  for (uint32_t rank = 0; rank < gridDim.x; ++rank) {
    count += gpu::ptx::load_cluster_word(gpu::ptx::map_shared(&tile.facts->fault_count, rank));
    first = min(first, gpu::ptx::load_cluster_word(gpu::ptx::map_shared(&tile.facts->fault_first, rank)));
  }
  report_faults(args, count, first);
}

// The grid is one cluster, of a multiple of 8 blocks.
template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads) align_cluster(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  const Tile tile(shared, args.num_codes);
  auto* const block_counts = reinterpret_cast<uint2*>(tile.rest);
  tile.clear_facts();
  tile.clear_row();

  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t num_counted = count_pairs(args.source);
  const uint32_t items = (num_counted + gridDim.x * Tile::kThreads - 1) / (gridDim.x * Tile::kThreads);
  const uint32_t first_pair = blockIdx.x * Tile::kThreads * items;

  uint32_t codes[Tile::kItems];
  Faults faults;
  load_codes<Tile, kPlain>(args.source, first_pair, items, num_counted, codes, faults);
  tile.rank(codes, items, args.code_bits);
  __syncthreads();

  tile.add_faults(faults);
  const Quad in_tile = tile.sum_rows();
  if (threadIdx.x < tile.stride / 4) block_counts[threadIdx.x] = pack_quad(in_tile);
  __syncthreads();
  gpu::ptx::cluster_arrive();
  const uint32_t start = tile.sum_below(in_tile.sum());
  if (threadIdx.x == tile.stride / 4 - 1) tile.facts->flag = start + in_tile.sum();
  gpu::ptx::cluster_wait();

  Quad total;
  Quad before;
  sum_over_cluster(tile, block_counts, total, before);
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == Tile::kThreads - 1) report_cluster_faults(args, tile);
  __syncwarp();
  gpu::ptx::cluster_arrive();  // nobody leaves while another still reads its counts
  Quad slots;
  tile.plan_slots(total, args, slots);
#pragma unroll
  for (int j = 0; j < 4; ++j) slots.of[j] += before.of[j];
  tile.spread_rows(start, in_tile, slots);
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  tile.stage(codes, items);
  write_pads(args, tile, first / Tile::kWave, step / Tile::kWave);
  write_block_experts(args, tile, first, step);
  if (blockIdx.x == gridDim.x - 1) write_summary(args, tile);
  if (args.out.pair_slots) write_pair_slots(args, tile, codes, items, first_pair, num_counted);
  __syncthreads();

  write_tile(args, tile, first_pair, tile.facts->flag, threadIdx.x, Tile::kThreads);
  fill_zeros(args, first, step);
  gpu::ptx::cluster_wait();
}

}  // namespace mixlane::align_gpu
