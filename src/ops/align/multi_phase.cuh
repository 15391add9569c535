// align.multi_phase: all SMs, one cooperative launch, ids read once.
//
//   count    every block counts the codes of its contiguous chunk of pairs and keeps the codes, packed, in shared memory
//   barrier
//   columns  a wave per code turns the blocks' counts into sums over the blocks before
//   barrier
//   sort     every block sorts its chunk tile by tile and writes each tile as runs of consecutive slots
//
// What does not fit in shared memory is read again in `sort`.
#pragma once

#include "ops/align/outputs.cuh"

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

// Codes of the block's chunk, four per thread and entry, as bytes while kNoCode can be told from a code.
template <class Tile>
class CodeCache {
 public:
  __device__ CodeCache(std::byte* memory, uint32_t bytes, uint32_t num_codes, uint32_t items)
      : memory_(memory),
        wide_(num_codes > 256),
        groups_((items + 3) / 4),
        num_tiles_(bytes / (groups_ * Tile::kThreads * (wide_ ? 8u : 4u))) {}

  // 256 codes leave no byte for kNoCode: a chunk that has one is not kept.
  __device__ static bool holds(uint32_t num_codes, bool has_none) { return num_codes != 256 || !has_none; }
  __device__ uint32_t num_tiles() const { return num_tiles_; }

  __device__ void store(uint32_t tile, const uint32_t (&codes)[Tile::kItems]) const {
#pragma unroll
    for (uint32_t g = 0; g < Tile::kItems / 4; ++g) {
      if (g >= groups_) break;
      const uint32_t entry = (tile * groups_ + g) * Tile::kThreads + threadIdx.x;
      const uint32_t low = codes[4 * g] & 0xffffu;
      if (wide_) {
        reinterpret_cast<uint2*>(memory_)[entry] =
            make_uint2(low | codes[4 * g + 1] << 16, (codes[4 * g + 2] & 0xffffu) | codes[4 * g + 3] << 16);
      } else {
        reinterpret_cast<uint32_t*>(memory_)[entry] =
            (low & 0xffu) | (codes[4 * g + 1] & 0xffu) << 8 | (codes[4 * g + 2] & 0xffu) << 16 | codes[4 * g + 3] << 24;
      }
    }
  }

  __device__ void load(uint32_t tile, bool byte_none, uint32_t (&codes)[Tile::kItems]) const {
#pragma unroll
    for (uint32_t g = 0; g < Tile::kItems / 4; ++g) {
      if (g >= groups_) break;
      const uint32_t entry = (tile * groups_ + g) * Tile::kThreads + threadIdx.x;
      if (wide_) {
        const uint2 packed = reinterpret_cast<const uint2*>(memory_)[entry];
        codes[4 * g] = packed.x & 0xffffu;
        codes[4 * g + 1] = packed.x >> 16;
        codes[4 * g + 2] = packed.y & 0xffffu;
        codes[4 * g + 3] = packed.y >> 16;
      } else {
        const uint32_t packed = reinterpret_cast<const uint32_t*>(memory_)[entry];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t code = packed >> (8 * j) & 0xffu;
          codes[4 * g + j] = byte_none && code == 0xffu ? kNoCode : code;
        }
      }
    }
  }

 private:
  std::byte* memory_;
  bool wide_;
  uint32_t groups_;
  uint32_t num_tiles_;
};

// One block's part of the pairs.
struct Chunk {
  uint32_t begin;
  uint32_t end;
  uint32_t items;  // per thread and tile
  uint32_t tile_pairs;

  template <class Tile>
  __device__ static Chunk of_block(uint32_t num_counted) {
    const uint32_t per_block = (num_counted + gridDim.x - 1) / gridDim.x;
    const uint32_t size = (per_block + Tile::kThreads - 1) / Tile::kThreads * Tile::kThreads;
    Chunk chunk;
    chunk.begin = static_cast<uint32_t>(min(uint64_t{size} * blockIdx.x, uint64_t{num_counted}));
    chunk.end = static_cast<uint32_t>(min(uint64_t{chunk.begin} + size, uint64_t{num_counted}));
    chunk.items = min(size / Tile::kThreads, static_cast<uint32_t>(Tile::kItems));
    chunk.tile_pairs = chunk.items * Tile::kThreads;
    return chunk;
  }
};

// Sums over the blocks before, in place, and totals: a wave per code, the waves of all blocks in turn.
template <class Tile>
__device__ void sum_columns(const Matrix& matrix, uint32_t num_codes) {
  using Wave = typename Tile::Wave;
  constexpr int kBatch = 10;  // loads in flight; 320 blocks with waves of 32
  const uint32_t num_blocks = gridDim.x;
  for (uint32_t code = Wave::index_in_block() * num_blocks + blockIdx.x; code < num_codes;
       code += Tile::kWaves * num_blocks) {
    uint32_t* const column = matrix.counts + code * num_blocks;
    uint32_t below = 0;
    for (uint32_t base = Wave::lane(); base < num_blocks + Wave::lane(); base += kBatch * Tile::kWave) {
      uint32_t counts[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t block = base + i * Tile::kWave;
        counts[i] = block < num_blocks ? gpu::load_relaxed<gpu::Scope::device>(column + block) : 0;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t block = base + i * Tile::kWave;
        const uint32_t inclusive = Wave::inclusive_sum(counts[i]);
        if (block < num_blocks) gpu::store_relaxed<gpu::Scope::device>(column + block, below + inclusive - counts[i]);
        below += Wave::shuffle(inclusive, Tile::kWave - 1);
      }
    }
    if (Wave::lane() == 0) gpu::store_relaxed<gpu::Scope::device>(matrix.totals + code, below);
  }
}

// Counts the chunk's codes in tile.totals (zeroed here) and keeps what fits in the cache.
template <class Tile, bool kPlain>
__device__ void count_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const CodeCache<Tile>& cache) {
  for (uint32_t code = threadIdx.x; code < tile.stride; code += Tile::kThreads) tile.totals[code] = 0;
  tile.clear_facts();
  __syncthreads();
  Faults faults;
  bool has_none = false;
  uint32_t index = 0;
  for (uint32_t first = chunk.begin; first < chunk.end; first += chunk.tile_pairs, ++index) {
    uint32_t codes[Tile::kItems];
    load_codes<Tile, kPlain>(args.source, first, chunk.items, chunk.end, codes, faults);
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      if (i >= static_cast<int>(chunk.items)) break;
      if (codes[i] != kNoCode) atomicAdd(tile.totals + codes[i], 1u);
      // Behind the chunk's end there is nothing to tell apart: those pairs are cut off again when the tile is sorted.
      else if (first + Tile::pair_of(chunk.items, i) < chunk.end)
        has_none = true;
    }
    if (index < cache.num_tiles()) cache.store(index, codes);
  }
  if (has_none) tile.facts->flag = 1;
  tile.add_faults(faults);
  __syncthreads();
}

// This thread's column entries of the matrix, and by one thread the block's reported pairs.
template <class Tile>
__device__ void publish_counts(const KernelArgs& args, const Tile& tile, const Matrix& matrix) {
  for (uint32_t code = threadIdx.x; code < args.num_codes; code += Tile::kThreads)
    matrix.counts[code * gridDim.x + blockIdx.x] = tile.totals[code];
  if (threadIdx.x == 0) {
    matrix.faults[2 * blockIdx.x] = tile.facts->fault_count;
    matrix.faults[2 * blockIdx.x + 1] = tile.facts->fault_first;
  }
}

// By the block that writes the summary.
template <class Tile>
__device__ void report_all_faults(const KernelArgs& args, const Tile& tile, const Matrix& matrix) {
  tile.clear_facts();
  __syncthreads();
  for (uint32_t block = threadIdx.x; block < gridDim.x; block += Tile::kThreads)
    tile.add_faults({gpu::load_relaxed<gpu::Scope::device>(matrix.faults + 2 * block),
                     gpu::load_relaxed<gpu::Scope::device>(matrix.faults + 2 * block + 1)});
  __syncthreads();
  if (threadIdx.x == 0) report_faults(args, tile.facts->fault_count, tile.facts->fault_first);
}

// Sorts the chunk tile by tile; `slots` = where the next pair of each of this thread's codes goes.
template <class Tile, bool kPlain>
__device__ void sort_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const CodeCache<Tile>& cache,
                           bool cached, Quad slots) {
  uint32_t index = 0;
  for (uint32_t first = chunk.begin; first < chunk.end; first += chunk.tile_pairs, ++index) {
    uint32_t codes[Tile::kItems];
    if (cached && index < cache.num_tiles()) {
      cache.load(index, args.num_codes < 256, codes);
      if (chunk.end - first < chunk.tile_pairs) {
#pragma unroll
        for (int i = 0; i < Tile::kItems; ++i)
          if (first + Tile::pair_of(chunk.items, i) >= chunk.end) codes[i] = kNoCode;
      }
    } else {
      Faults reported_before;
      load_codes<Tile, kPlain>(args.source, first, chunk.items, chunk.end, codes, reported_before);
    }
    tile.clear_row();
    tile.rank(codes, chunk.items, args.code_bits);
    __syncthreads();

    const Quad in_tile = tile.sum_rows();
    const uint32_t start = tile.sum_below(in_tile.sum());
    tile.spread_rows(start, in_tile, slots);
#pragma unroll
    for (int j = 0; j < 4; ++j) slots.of[j] += in_tile.of[j];
    if (threadIdx.x == tile.stride / 4 - 1) tile.facts->flag = start + in_tile.sum();
    __syncthreads();

    tile.stage(codes, chunk.items);
    if (args.out.pair_slots) write_pair_slots(args, tile, codes, chunk.items, first, chunk.end);
    const uint32_t num_staged = tile.facts->flag;
    __syncthreads();

    write_tile(args, tile, first, num_staged, threadIdx.x, Tile::kThreads);
  }
}

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads, 1024 / Tile::kThreads)
    align_multi_phase(const __grid_constant__ KernelArgs args, uint32_t cache_bytes) {
  extern __shared__ __align__(16) std::byte shared[];
  const Tile tile(shared, args.num_codes);
  const uint32_t num_counted = count_pairs(args.source);
  const Chunk chunk = Chunk::of_block<Tile>(num_counted);
  const CodeCache<Tile> cache(tile.rest, cache_bytes, args.num_codes, max(chunk.items, 1u));
  const Matrix matrix(args.workspace, args.num_codes, gridDim.x);

  count_chunk<Tile, kPlain>(args, tile, chunk, cache);
  const bool cached = CodeCache<Tile>::holds(args.num_codes, tile.facts->flag != 0);
  publish_counts(args, tile, matrix);
  gpu::grid_barrier(args.barrier);
  sum_columns<Tile>(matrix, args.num_codes);
  gpu::grid_barrier(args.barrier);

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
#pragma unroll
  for (int j = 0; j < 4; ++j) slots.of[j] += before.of[j];
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  // Neighbouring codes go to different blocks.
  write_pads(args, tile, Tile::Wave::index_in_block() * gridDim.x + blockIdx.x, step / Tile::kWave);
  write_block_experts(args, tile, first, step);
  if (blockIdx.x == gridDim.x - 1) {
    write_summary(args, tile);
    report_all_faults(args, tile, matrix);
  }
  fill_zeros(args, first, step);
  sort_chunk<Tile, kPlain>(args, tile, chunk, cache, cached, slots);
}

}  // namespace mixlane::align_gpu
