// align.multi_phase: all SMs, one cooperative launch.
//
//   order    every block sorts its contiguous chunk of pairs tile by tile and keeps the order in shared memory, 16 bits a
//            pair; of the tiles beyond that memory it only counts the codes
//   barrier
//   columns  a wave per code turns the blocks' counts into sums over the blocks before
//   barrier
//   write    lanes per code write its runs of all kept tiles to consecutive slots; the other tiles are read again,
//            sorted and written one by one
#pragma once

#include "ops/align/outputs.cuh"
#include "ops/align/tile_order.cuh"

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

// One block's part of the pairs.
struct Chunk {
  uint32_t begin;
  uint32_t end;

  __device__ explicit Chunk(uint32_t num_counted) {
    const uint32_t share = even_share(num_counted, gridDim.x);
    begin = static_cast<uint32_t>(min(uint64_t{share} * blockIdx.x, uint64_t{num_counted}));
    end = static_cast<uint32_t>(min(uint64_t{begin} + share, uint64_t{num_counted}));
  }
};

// Sums over the blocks before, in place, and totals: a wave per code, the waves of all blocks in turn.
template <class Tile>
__device__ void sum_columns(const Matrix& matrix, uint32_t num_codes) {
  using Wave = typename Tile::Wave;
  constexpr int kBatch = 10;  // loads and scans in flight; 320 blocks with waves of 32
  const uint32_t num_blocks = gridDim.x;
  for (uint32_t code = Wave::index_in_block() * num_blocks + blockIdx.x; code < num_codes;
       code += Tile::kWaves * num_blocks) {
    uint32_t* const column = matrix.counts + code * num_blocks;
    uint32_t below = 0;
    for (uint32_t base = 0; base < num_blocks; base += kBatch * Tile::kWave) {
      const uint32_t first = base + Wave::lane();
      uint32_t counts[kBatch];
      uint32_t sums[kBatch];  // over the lanes up to this one
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t block = first + i * Tile::kWave;
        counts[i] = block < num_blocks ? gpu::load_relaxed<gpu::Scope::device>(column + block) : 0;
      }
      Wave::inclusive_sums(counts, sums);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t block = first + i * Tile::kWave;
        if (block < num_blocks) gpu::store_relaxed<gpu::Scope::device>(column + block, below + sums[i] - counts[i]);
        below += Wave::shuffle(sums[i], Tile::kWave - 1);
      }
    }
    if (Wave::lane() == 0) gpu::store_relaxed<gpu::Scope::device>(matrix.totals + code, below);
  }
}

struct SortedTile {
  Quad counted;  // of this thread's codes
  Faults faults;
};

// Sorts the tile that starts at pair `first` into entry `index`.
template <class Tile, bool kPlain>
__device__ __forceinline__ SortedTile sort_pairs(const KernelArgs& args, const Tile tile, const TileOrders<Tile> orders,
                                              uint32_t index, uint32_t first, uint32_t end, bool exact) {
  SortedTile sorted;
  uint32_t codes[Tile::kItems];
  load_codes<Tile, kPlain>(args.source, first, end, codes, sorted.faults);
  if (args.out.pair_slots) write_dropped_slots<Tile>(args, codes, first, end);
  sorted.counted = orders.sort(tile, index, codes, exact);
  return sorted;
}

// Counts the pairs from `first` on in tile.totals.
template <class Tile, bool kPlain>
__device__ __forceinline__ Faults count_pairs_from(const KernelArgs& args, const Tile tile, uint32_t first, uint32_t end) {
  Faults faults;
  for (; first < end; first += Tile::kPairs) {
    uint32_t codes[Tile::kItems];
    load_codes<Tile, kPlain>(args.source, first, end, codes, faults);
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if (codes[i] != kNoCode) atomicAdd(tile.totals + codes[i], 1u);
  }
  return faults;
}

// Sorts the tiles that are kept and counts the others. Returns the chunk's pairs of this thread's codes.
template <class Tile, bool kPlain>
__device__ Quad order_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const TileOrders<Tile>& orders) {
  for (uint32_t code = threadIdx.x; code < tile.stride; code += Tile::kThreads) tile.totals[code] = 0;
  tile.clear_facts();
  __syncthreads();
  Quad counted;
  uint32_t first = chunk.begin;
  for (uint32_t index = 0; index < orders.capacity && first < chunk.end; ++index, first += Tile::kPairs) {
    prefetch_tile<Tile, kPlain>(args.source, first + Tile::kPairs, chunk.end);
    const SortedTile sorted = sort_pairs<Tile, kPlain>(args, tile, orders, index, first, chunk.end, false);
    counted.add(sorted.counted);
    tile.add_faults(sorted.faults);
  }
  if (first < chunk.end) tile.add_faults(count_pairs_from<Tile, kPlain>(args, tile, first, chunk.end));
  __syncthreads();
  if (threadIdx.x < tile.stride / 4) {
    const uint4 others = *reinterpret_cast<const uint4*>(tile.totals + threadIdx.x * 4);
    counted.add({{others.x, others.y, others.z, others.w}});
  }
  return counted;
}

// This thread's entries of the block's column, and by one thread the block's reported pairs.
template <class Tile>
__device__ void publish_counts(const KernelArgs& args, const Tile& tile, const Matrix& matrix, const Quad& counted) {
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t code = threadIdx.x * 4 + j;
    if (code < args.num_codes) matrix.counts[code * gridDim.x + blockIdx.x] = counted.of[j];
  }
  if (threadIdx.x == 0) {
    matrix.faults[2 * blockIdx.x] = tile.facts->fault_count;
    matrix.faults[2 * blockIdx.x + 1] = tile.facts->fault_first;
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

// By one wave of the block that writes the summary.
template <class Tile>
__device__ void report_all_faults(const KernelArgs& args, const Matrix& matrix) {
  using Wave = typename Tile::Wave;
  uint32_t count = 0;
  uint32_t first = ~0u;
#pragma unroll 1
  for (uint32_t block = Wave::lane(); block < gridDim.x; block += Tile::kWave) {
    count += gpu::load_relaxed<gpu::Scope::device>(matrix.faults + 2 * block);
    first = min(first, gpu::load_relaxed<gpu::Scope::device>(matrix.faults + 2 * block + 1));
  }
  for (int distance = Tile::kWave / 2; distance > 0; distance /= 2) {
    const int other = static_cast<int>(Wave::lane()) ^ distance;
    count += Wave::shuffle(count, other);
    first = min(first, Wave::shuffle(first, other));
  }
  if (Wave::lane() == 0) report_faults(args, count, first);
}

// Writes the pairs of the chunk; what turns out to be in the wrong order again. `slots`: of the first pair of each of this
// thread's codes.
template <class Tile, bool kPlain>
__device__ void write_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const TileOrders<Tile>& orders,
                            const Quad& slots) {
  const uint32_t num_tiles = (chunk.end - chunk.begin + Tile::kPairs - 1) / Tile::kPairs;
  const uint32_t num_kept = min(num_tiles, orders.capacity);
  orders.set_slots(tile, slots);
  __syncthreads();
  bool exact = __syncthreads_or(!orders.write(args, tile, num_kept, chunk.begin));
  uint32_t index = exact ? 0 : num_kept;
  if (index < num_tiles) orders.advance_slots(tile, index);
  while (index < num_tiles) {
    const uint32_t first = chunk.begin + index * Tile::kPairs;
    sort_pairs<Tile, kPlain>(args, tile, orders, 0, first, chunk.end, exact);
    __syncthreads();
    if (__syncthreads_or(!orders.write(args, tile, 1, first))) {
      exact = true;  // once more
      continue;
    }
    orders.advance_slots(tile, 1);
    ++index;
  }
}

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads, 1024 / Tile::kThreads)
    align_multi_phase(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t num_kept) {
  extern __shared__ __align__(16) std::byte shared[];
  const Tile tile(shared, args.num_codes);
  const TileOrders<Tile> orders(tile, num_kept);
  const Chunk chunk(count_pairs(args.source));
  const Matrix matrix(args.workspace, args.num_codes, gridDim.x);

  const Quad counted = order_chunk<Tile, kPlain>(args, tile, chunk, orders);
  publish_counts(args, tile, matrix, counted);
  gpu::grid_barrier(args.barrier);
  sum_columns<Tile>(matrix, args.num_codes);
  gpu::grid_barrier(args.barrier);
  const Quad slots = plan_block(args, tile, matrix);
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  // Neighbouring codes go to different blocks.
  write_code_places(args, tile, Tile::Wave::index_in_block() * gridDim.x + blockIdx.x, step / Tile::kWave);
  write_other_block_experts(args, tile, first, step);
  if (blockIdx.x == gridDim.x - 1) {
    write_summary(args, tile);
    if (Tile::Wave::index_in_block() == 0) report_all_faults<Tile>(args, matrix);
  }
  fill_zeros(args, first, step);
  write_chunk<Tile, kPlain>(args, tile, chunk, orders, slots);
}

}  // namespace mixlane::align_gpu
