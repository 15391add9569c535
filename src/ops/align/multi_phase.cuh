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

#include "ops/align/matrix.cuh"
#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// Codes of the block's chunk, four per thread and entry, as bytes while kNoCode can be told from a code.
template <class Tile>
class CodeCache {
 public:
  __device__ CodeCache(std::byte* memory, uint32_t bytes, uint32_t num_codes)
      : memory_(memory), wide_(num_codes > 256), num_tiles_(bytes / (Tile::kPairs * (wide_ ? 2u : 1u))) {}

  // 256 codes leave no byte for kNoCode: a chunk that has one is not kept.
  __device__ static bool holds(uint32_t num_codes, bool has_none) { return num_codes != 256 || !has_none; }
  __device__ uint32_t num_tiles() const { return num_tiles_; }

  __device__ void store(uint32_t tile, const uint32_t (&codes)[Tile::kItems]) const {
#pragma unroll
    for (uint32_t g = 0; g < kGroups; ++g) {
      const uint32_t entry = (tile * kGroups + g) * Tile::kThreads + threadIdx.x;
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
    for (uint32_t g = 0; g < kGroups; ++g) {
      const uint32_t entry = (tile * kGroups + g) * Tile::kThreads + threadIdx.x;
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
  static_assert(Tile::kItems % 4 == 0);
  static constexpr uint32_t kGroups = Tile::kItems / 4;
  std::byte* memory_;
  bool wide_;
  uint32_t num_tiles_;
};

// One block's part of the pairs.
struct Chunk {
  uint32_t begin;
  uint32_t end;

  __device__ Chunk(uint32_t num_counted, uint32_t share) {
    begin = static_cast<uint32_t>(min(uint64_t{share} * blockIdx.x, uint64_t{num_counted}));
    end = static_cast<uint32_t>(min(uint64_t{begin} + share, uint64_t{num_counted}));
  }
};

// Counts the chunk's codes in tile.totals (zeroed here) and keeps what fits in the cache.
template <class Tile, bool kPlain>
__device__ void count_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const CodeCache<Tile>& cache) {
  for (uint32_t code = threadIdx.x; code < tile.stride; code += Tile::kThreads) tile.totals[code] = 0;
  tile.clear_facts();
  __syncthreads();
  Faults faults;
  bool has_none = false;
  uint32_t index = 0;
  for (uint32_t first = chunk.begin; first < chunk.end; first += Tile::kPairs, ++index) {
    uint32_t codes[Tile::kItems];
    load_codes<Tile, kPlain>(args.source, first, chunk.end, codes, faults);
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      if (codes[i] != kNoCode) atomicAdd(tile.totals + codes[i], 1u);
      // Behind the chunk's end nothing needs telling apart: those pairs are cut off again when the tile is sorted.
      else if (first + Tile::pair_of(i) < chunk.end)
        has_none = true;
    }
    if (index < cache.num_tiles()) cache.store(index, codes);
  }
  if (has_none) tile.facts->has_none = 1;
  tile.add_faults(faults);
  __syncthreads();
}

// By the first of the hardware's waves of the block that writes the summary.
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
  if (threadIdx.x == 0) report_faults(args, count, first);
}

// What belongs to no code and no slot: the summary, by one block, and zeros.
template <class Tile>
__device__ void write_summary_and_zeros(const KernelArgs& args, const Tile& tile, const Matrix& matrix, uint32_t first,
                                        uint32_t step) {
  if (blockIdx.x == gridDim.x - 1) {
    write_summary(args, tile);
    if (threadIdx.x < gpu::kHardwareWave) report_all_faults<Tile>(args, matrix);
  }
  fill_zeros(args, first, step);
}

// Everything but the pairs, shared by the blocks; the places are planned.
template <class Tile>
__device__ void write_places(const KernelArgs& args, const Tile& tile, const Matrix& matrix) {
  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  // Neighbouring codes go to different blocks.
  write_code_places(args, tile, Tile::Wave::index_in_block() * gridDim.x + blockIdx.x, step / Tile::kWave);
  write_other_block_experts(args, tile, first, step);
  write_summary_and_zeros(args, tile, matrix, first, step);
}

// The codes of a tile whose chunk is kept.
template <class Tile>
__device__ void load_cached(const CodeCache<Tile>& cache, uint32_t index, bool byte_none, uint32_t first, uint32_t end,
                            uint32_t (&codes)[Tile::kItems]) {
  cache.load(index, byte_none, codes);
  if (end - first >= Tile::kPairs) return;
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i)
    if (first + Tile::pair_of(i) >= end) codes[i] = kNoCode;
}

// Sorts and writes the chunk tile by tile; `slots` = where the next pair of each of this thread's codes goes.
template <class Tile, bool kPlain>
__device__ void sort_chunk(const KernelArgs& args, const Tile& tile, const Chunk& chunk, const CodeCache<Tile>& cache,
                           Quad slots) {
  const Staged<Tile> staged{reinterpret_cast<uint32_t*>(tile.rest)};
  const bool cached = CodeCache<Tile>::holds(args.num_codes, tile.facts->has_none != 0);
  uint32_t index = 0;
  for (uint32_t first = chunk.begin; first < chunk.end; first += Tile::kPairs, ++index) {
    uint32_t codes[Tile::kItems];
    if (cached && index < cache.num_tiles()) {
      load_cached(cache, index, args.num_codes < 256, first, chunk.end, codes);
    } else {
      Faults reported_before;
      load_codes<Tile, kPlain>(args.source, first, chunk.end, codes, reported_before);
    }
    tile.clear_row();
    tile.rank(codes, false);
    __syncthreads();

    const Quad in_tile = tile.sum_rows();
    const Quad starts = starts_of(tile.sum_below(in_tile.sum()), in_tile);
    tile.spread_rows(starts);
    tile.set_shift(starts, slots);
    slots.add(in_tile);
    if (threadIdx.x == tile.stride / 4 - 1) tile.facts->num_staged = starts.of[3] + in_tile.of[3];
    __syncthreads();

    staged.stage(tile, codes);
    if (args.out.pair_slots) write_pair_slots(args, tile, codes, first, chunk.end);
    const uint32_t num_staged = tile.facts->num_staged;
    __syncthreads();

    write_tile<Tile, kPlain>(
        args, tile,
        {first, chunk.end, num_staged, 0, num_staged, threadIdx.x, Tile::kThreads, args.out.pair_slots != nullptr}, starts);
  }
}

// kBlocks: of a multiprocessor.
template <class Tile, bool kPlain, int kBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks)
    align_multi_phase(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t cache_bytes) {
  extern __shared__ __align__(16) std::byte shared[];
  const Tile tile(shared, args.num_codes);
  const uint32_t num_counted = count_pairs(args.source);
  const Chunk chunk(num_counted, even_share(num_counted, gridDim.x));
  const CodeCache<Tile> cache(tile.rest + Staged<Tile>::kBytes, cache_bytes, args.num_codes);
  const Matrix matrix(args.workspace, args.num_codes, gridDim.x);

  count_chunk<Tile, kPlain>(args, tile, chunk, cache);
  publish_counts(args, tile, matrix);
  gpu::grid_barrier(args.barrier);
  sum_columns<Tile>(matrix, args.num_codes);
  gpu::grid_barrier(args.barrier);
  const Quad slots = plan_block(args, tile, matrix);
  __syncthreads();

  write_places(args, tile, matrix);
  sort_chunk<Tile, kPlain>(args, tile, chunk, cache, slots);
}

}  // namespace mixlane::align_gpu
