// align.oneshot: every block sorts all pairs by itself and writes its share of the output. No block waits for another,
// so several SMs share the stores (mostly pads, at few tokens) without a word of communication.
#pragma once

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads) align_oneshot(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  const Tile tile(shared, args.num_codes);
  tile.clear_facts();
  tile.clear_row();

  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t num_counted = count_pairs(args.source);
  const uint32_t items = (num_counted + Tile::kThreads - 1) / Tile::kThreads;

  uint32_t codes[Tile::kItems];
  Faults faults;
  load_codes<Tile, kPlain>(args.source, 0, items, num_counted, codes, faults);
  tile.rank(codes, items, args.code_bits);
  __syncthreads();

  tile.add_faults(faults);
  const Quad total = tile.sum_rows();
  Quad slots;
  const uint32_t start = tile.plan_slots(total, args, slots);
  tile.spread_rows(start, total, slots);
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  tile.stage(codes, items);
  write_pads(args, tile, first / Tile::kWave, step / Tile::kWave);
  write_block_experts(args, tile, first, step);
  if (blockIdx.x == gridDim.x - 1) {
    write_summary(args, tile);
    if (args.out.pair_slots) write_pair_slots(args, tile, codes, items, 0, num_counted);
    if (threadIdx.x == 0) report_faults(args, tile.facts->fault_count, tile.facts->fault_first);
  }
  __syncthreads();

  write_tile(args, tile, 0, tile.facts->num_kept, first, step);
  fill_zeros(args, first, step);
}

}  // namespace mixlane::align_gpu
