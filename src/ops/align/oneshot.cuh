// align.oneshot: every block sorts all pairs by itself and writes its share of the output. No block waits for another,
// so several SMs share the stores (mostly pads, at few tokens) without a word of communication.
#pragma once

#include "ops/align/direct.cuh"

namespace mixlane::align_gpu {

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads) align_oneshot(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  gpu::prefetch_args(args);
  const Tile tile(shared, args.num_codes);
  const Direct<Tile> direct{reinterpret_cast<uint16_t*>(tile.rest)};
  tile.clear_facts();
  tile.clear_row();
  const auto roles = DirectRoles<Tile>::of(blockIdx.x, gridDim.x);

  uint32_t codes[Tile::kItems];
  Faults faults;
  const PairRange range = wait_and_load<Tile, kPlain>(args.source, 0, 1, codes, faults);
  tile.rank(codes, false);
  __syncthreads();

  tile.add_faults(faults);
  const Quad total = tile.sum_rows();
  Quad slots;
  const uint32_t below = tile.template plan_slots<uint32_t>(total, args, slots, [&](uint32_t value) {
    return tile.sum_below(value, reinterpret_cast<uint32_t*>(tile.wave_sums));
  });
  const Quad starts = starts_of(below, total);
  tile.spread_rows(starts);
  tile.set_shift(starts, slots);
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  const bool pair_slots = args.out.pair_slots != nullptr && blockIdx.x == 0;
  direct.template write<kPlain>(args, tile, codes, range.begin, range.end, roles.writes_pairs, pair_slots);
  if (roles.writes_codes) write_code_places(args, tile, roles.index * gridDim.x + blockIdx.x, roles.count * gridDim.x);
  write_other_block_experts(args, tile, first, step);
  if (blockIdx.x == gridDim.x - 1) {
    write_summary(args, tile);
    if (threadIdx.x == 0) report_faults(args, tile.facts->fault_count, tile.facts->fault_first);
  }
  fill_zeros(args, first, step);
}

}  // namespace mixlane::align_gpu
