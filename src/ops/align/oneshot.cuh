// align.oneshot: every block sorts all pairs by itself and writes its share of the output. No block waits for another,
// so several SMs share the stores (mostly pads, at few tokens) without a word of communication.
#pragma once

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads) align_oneshot(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  gpu::prefetch_args(args);
  const Tile tile(shared, args.num_codes);
  const Staged<Tile> staged{reinterpret_cast<uint32_t*>(tile.rest)};
  tile.clear_facts();
  tile.clear_row();

  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t num_counted = count_pairs(args.source);

  uint32_t codes[Tile::kItems];
  Faults faults;
  load_codes<Tile, kPlain>(args.source, 0, num_counted, codes, faults);
  tile.rank(codes, false);
  __syncthreads();

  tile.add_faults(faults);
  const Quad total = tile.sum_rows();
  Quad slots;
  const Quad starts = starts_of(tile.plan_slots(total, args, slots), total);
  tile.spread_rows(starts);
  tile.set_shift(starts, slots);
  __syncthreads();

  using Roles = WaveRoles<Tile>;
  const uint32_t wave = Roles::index_in_block() * gridDim.x + blockIdx.x;
  const uint32_t num_waves = Roles::kCount * gridDim.x;
  const bool last_block = blockIdx.x == gridDim.x - 1;
  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  staged.stage(tile, codes);
  if (!Roles::kSplit) write_code_places(args, tile, wave, num_waves);
  write_other_block_experts(args, tile, first, step);
  if (last_block) {
    write_summary(args, tile);
    if (args.out.pair_slots) write_pair_slots(args, tile, codes, 0, num_counted);
    if (threadIdx.x == 0) report_faults(args, tile.facts->fault_count, tile.facts->fault_first);
  }
  fill_zeros(args, first, step);
  __syncthreads();

  if (Roles::kSplit && Roles::writes_codes()) write_code_places(args, tile, wave, num_waves);
  TileShare share = TileShare::of_block<Tile>(0, num_counted, tile.facts->num_kept, blockIdx.x, gridDim.x);
  share.pair_slots = last_block && args.out.pair_slots;
  write_tile<Tile, kPlain>(args, tile, share, starts);
}

}  // namespace mixlane::align_gpu
