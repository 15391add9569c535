// align.multi_phase for many pairs: tiles are sorted while their ids arrive, and the output gathers from sorted tiles.
//
//   sort      tile by tile: a stable sort by code in shared memory; the sorted tile goes to the workspace, 16 bits a pair,
//             which the second-level cache holds for the most part, and where each code's run begins
//   barrier, columns (a wave per code sums its runs over the tiles), barrier
//   gather    every line of the output is put together from the runs that meet there and written whole
//
// Tiles are dealt out in turn. A pair moves 4 bytes in, 2 out and 2 in again, 4 out.
#pragma once

#include <algorithm>

#include "ops/align/gather.cuh"
#include "ops/align/multi_phase.cuh"
#include "ops/align/sorted_tile.cuh"

namespace mixlane::align_gpu {

// The passes over codes are a small tile's.
template <class Sorter>
using PlanTile = Tile<Sorter::kThreads, 4, Sorter::kWave>;

// The block's shared memory: a tile's that is sorted, then the plan's and the gather's.
template <class Sorter>
int64_t gather_shared_bytes(uint32_t num_codes) {
  const int64_t rooms = Sorter::kThreads / gpu::kHardwareWave * sizeof(typename Gather<Sorter::kPairs>::Room);
  return std::max(Sorter::shared_bytes(num_codes), PlanTile<Sorter>::shared_bytes(num_codes) + rooms);
}

// The launch's global memory.
template <class Sorter>
struct GatherSpace {
  uint16_t* entries;    // [max_tiles][Sorter::kPairs]
  RunPlace* runs;       // [num_codes][max_tiles]
  uint32_t* positions;  // [num_codes][max_tiles]: of each run in its tile, and its pairs << 16
  uint32_t* rest;       // totals and faults: a matrix without counts
  uint32_t max_tiles;   // a multiple of kLaneTiles

  static constexpr uint32_t kLaneTiles = 4;  // that a lane sums

  __host__ __device__ static uint32_t num_tiles(uint32_t num_pairs) {
    return num_pairs / Sorter::kPairs + (num_pairs % Sorter::kPairs != 0);
  }
  __host__ __device__ static uint32_t row_of(uint32_t num_pairs) {
    return (num_tiles(num_pairs) + kLaneTiles - 1) / kLaneTiles * kLaneTiles;
  }
  __host__ static int64_t words(uint32_t num_pairs, uint32_t num_codes, uint32_t num_blocks) {
    return int64_t{row_of(num_pairs)} * (Sorter::kPairs / 2 + int64_t{3} * num_codes) + num_codes + int64_t{2} * num_blocks;
  }
  __device__ explicit GatherSpace(const KernelArgs& args) : max_tiles(row_of(args.source.num_pairs)) {
    entries = reinterpret_cast<uint16_t*>(args.workspace);
    runs = reinterpret_cast<RunPlace*>(entries + size_t{max_tiles} * Sorter::kPairs);
    positions = reinterpret_cast<uint32_t*>(runs + size_t{max_tiles} * args.num_codes);
    rest = positions + size_t{max_tiles} * args.num_codes;
  }
};

// Where every tile's run of each code is, and the totals: a wave per code. Every wave goes as many rounds, as in
// sum_columns().
template <class Sorter>
__device__ void place_runs(const GatherSpace<Sorter>& space, uint32_t* totals, uint32_t num_codes, uint32_t num_tiles) {
  using Wave = typename Sorter::Wave;
  constexpr uint32_t kLaneTiles = GatherSpace<Sorter>::kLaneTiles;
  constexpr uint32_t kBatch = 8;  // loads and scans in flight
  constexpr uint32_t kWaves = Sorter::kThreads / Sorter::kWave;
  for (uint32_t round = 0; round < num_codes; round += kWaves * gridDim.x) {
    const uint32_t code = round + Wave::index_in_block() * gridDim.x + blockIdx.x;
    const uint32_t end = code < num_codes ? num_tiles : 0;
    const uint32_t* const positions = space.positions + size_t{code} * space.max_tiles;
    RunPlace* const runs = space.runs + size_t{code} * space.max_tiles;
    uint32_t below = 0;
#pragma unroll 1
    for (uint32_t base = 0; base < num_tiles; base += kBatch * Sorter::kWave * kLaneTiles) {
      const uint32_t first = base + Wave::lane() * kLaneTiles;
      uint4 found[kBatch];
      uint32_t counts[kBatch];
      uint32_t sums[kBatch];  // over the lanes up to this one
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t tile = first + i * Sorter::kWave * kLaneTiles;
        found[i] = tile < end ? *reinterpret_cast<const uint4*>(positions + tile) : make_uint4(0, 0, 0, 0);
        // Rows have room for more tiles than there are.
        if (tile + 1 >= end) found[i].y = 0;
        if (tile + 2 >= end) found[i].z = 0;
        if (tile + 3 >= end) found[i].w = 0;
        counts[i] = (found[i].x >> 16) + (found[i].y >> 16) + (found[i].z >> 16) + (found[i].w >> 16);
      }
      Wave::inclusive_sums(counts, sums);
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t tile = first + i * Sorter::kWave * kLaneTiles;
        const uint32_t words[kLaneTiles] = {found[i].x, found[i].y, found[i].z, found[i].w};
        uint32_t before = below + sums[i] - counts[i];
#pragma unroll
        for (uint32_t j = 0; j < kLaneTiles; j += 2) {
          const uint32_t even = before;
          const uint32_t odd = even + (words[j] >> 16);
          const uint32_t entry = (tile + j) * Sorter::kPairs;
          if (tile < end)
            *reinterpret_cast<uint4*>(runs + tile + j) = make_uint4(even, entry + (words[j] & 0xffffu) - even, odd,
                                                                    entry + Sorter::kPairs + (words[j + 1] & 0xffffu) - odd);
          before = odd + (words[j + 1] >> 16);
        }
        below += Wave::shuffle(sums[i], Sorter::kWave - 1);
      }
    }
    if (code < num_codes && Wave::lane() == 0) totals[code] = below;
  }
}

// The plan of the output, the same in every block, for the passes that Tile has.
template <class Plan>
__device__ void plan_output(const KernelArgs& args, const Plan& plan, const Matrix& matrix) {
  Quad total;
  Quad slots;
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t code = threadIdx.x * 4 + j;
    if (code < args.num_codes) total.of[j] = gpu::load_relaxed<gpu::Scope::device>(matrix.totals + code);
  }
  plan.clear_facts();
  __syncthreads();
  plan.plan_slots(total, args, slots);
  __syncthreads();
}

// Everything but slots, shared by the blocks.
template <class Plan>
__device__ void write_facts(const KernelArgs& args, const Plan& plan, const Matrix& matrix) {
  const uint32_t first = blockIdx.x * Plan::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Plan::kThreads;
  write_unused_block_experts(args, plan, first, step);
  write_summary_and_zeros(args, plan, matrix, first, step);
}

// kPlain as in load_id().
template <class Sorter, bool kPlain>
__global__ void __launch_bounds__(Sorter::kThreads, Sorter::kBlocks)
    align_multi_phase_gather(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  using Plan = PlanTile<Sorter>;
  extern __shared__ __align__(128) std::byte shared[];
  const GatherSpace<Sorter> space(args);
  const Matrix matrix(space.rest, args.num_codes, 0);
  const uint32_t num_counted = count_pairs(args.source);
  const uint32_t num_tiles = space.num_tiles(num_counted);

  const Sorter sorter(shared, args, {space.entries, space.positions, space.max_tiles}, num_counted, kPlain);
  sorter.template sort<kPlain>(matrix.faults + 2 * blockIdx.x);
  gpu::grid_barrier(args.barrier);
  place_runs<Sorter>(space, matrix.totals, args.num_codes, num_tiles);
  gpu::grid_barrier(args.barrier);

  const Plan plan(shared, args.num_codes);
  plan_output(args, plan, matrix);
  write_facts(args, plan, matrix);
  const SortedTiles tiles{space.entries, space.runs, space.max_tiles, num_tiles};
  using Output = Gather<Sorter::kPairs>;
  Output(args, tiles, plan.offsets, plan.totals, reinterpret_cast<typename Output::Room*>(plan.rest)).run();
}

}  // namespace mixlane::align_gpu
