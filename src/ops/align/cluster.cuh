// align.cluster (sm_90): clusters of blocks, a tile each; every block writes its counts into the shared memory of its
// cluster's others and waits for theirs, where multi_phase needs two barriers of the grid. Of few pairs several clusters
// sort all and write a share each, as oneshot's blocks do: the stores take more multiprocessors than the sorting.
#pragma once

#include "gpu/ptx/cluster.cuh"
#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// What the blocks of a cluster tell each other: in tile.rest behind the staged pairs.
template <uint32_t kBlocks>
struct ClusterCounts {
  uint2* rows;        // [kBlocks][row_pairs]: four codes each, 16 bits per code
  uint2* faults;      // [kBlocks]: (count, first) of reported pairs; complete in the last block only
  uint64_t* barrier;  // what the others send is there
  uint32_t row_pairs;

  __host__ __device__ static constexpr uint32_t pairs_per_row(uint32_t num_codes) {
    return (num_quads(num_codes) + 1) / 2 * 2;
  }
  __host__ __device__ static constexpr int64_t bytes(uint32_t num_codes) {
    return int64_t{8} * (kBlocks * (pairs_per_row(num_codes) + 1) + 1);
  }

  __device__ ClusterCounts(std::byte* memory, uint32_t num_codes)
      : rows(reinterpret_cast<uint2*>(memory)),
        faults(rows + kBlocks * pairs_per_row(num_codes)),
        barrier(reinterpret_cast<uint64_t*>(faults + kBlocks)),
        row_pairs(pairs_per_row(num_codes)) {}

  __device__ static uint32_t own_rank() { return blockIdx.x % kBlocks; }
  __device__ uint2* row(uint32_t rank) const { return rows + rank * row_pairs; }

  // By one thread, before the blocks meet.
  __device__ void expect() const {
    const uint32_t bytes_per_block = row_pairs * 8 + (own_rank() == kBlocks - 1 ? 8 : 0);
    gpu::ptx::mbarrier_init(barrier, 1);
    gpu::ptx::mbarrier_arrive_expect(barrier, (kBlocks - 1) * bytes_per_block);
  }

  // The waves that hold codes have to sort them meanwhile; where they are the fewer, the others send.
  template <class Tile>
  __device__ static uint32_t first_sender(const Tile& tile) {
    const uint32_t num_holders = (tile.stride / 4 + Tile::kWave - 1) / Tile::kWave;
    return num_holders <= Tile::kWaves / 2 ? num_holders : 0;
  }

  // This block's row to all others, a wave per block, and its faults to the last one.
  template <class Tile>
  __device__ void send(const Tile& tile) const {
    const uint32_t first = first_sender(tile);
    const uint32_t wave = Tile::Wave::index_in_block();
    if (wave < first) return;
    const auto* packets = reinterpret_cast<const uint4*>(row(own_rank()));
#pragma unroll 1
    for (uint32_t rank = wave - first; rank < kBlocks; rank += Tile::kWaves - first) {
      if (rank == own_rank()) continue;
      const uint32_t to = gpu::ptx::map_shared(packets, rank);
      const uint32_t to_barrier = gpu::ptx::map_shared(barrier, rank);
#pragma unroll 1
      for (uint32_t i = Tile::Wave::lane(); i < row_pairs / 2; i += Tile::kWave)
        gpu::ptx::store_async(to + i * 16, packets[i], to_barrier);
    }
    if (wave != first || Tile::Wave::lane() != 0) return;
    constexpr uint32_t kLast = kBlocks - 1;
    const uint2 own_faults = make_uint2(tile.facts->fault_count, tile.facts->fault_first);
    if (own_rank() == kLast)
      faults[kLast] = own_faults;
    else
      gpu::ptx::store_async(gpu::ptx::map_shared(faults + own_rank(), kLast), own_faults,
                            gpu::ptx::map_shared(barrier, kLast));
  }

  // Pairs of this block below this thread's codes, once the block's row is there; a wave finds out by itself.
  template <class Tile>
  __device__ uint32_t sum_below(const Tile& tile, const Quad& own) const {
    uint32_t values[2] = {own.sum(), 0};
    uint32_t sums[2];
#pragma unroll 1
    for (uint32_t i = Tile::Wave::lane(); i < Tile::Wave::index_in_block() * Tile::kWave; i += Tile::kWave)
      values[1] += unpack_quad(row(own_rank())[i]).sum();
    Tile::Wave::inclusive_sums(values, sums);
    return sums[0] - values[0] + Tile::Wave::shuffle(sums[1], Tile::kWave - 1);
  }

  // Sums of this thread's codes: over all blocks, and over those before this one. Waits for the rows, whole waves of the
  // hardware: part of one that has to wait sleeps on for about 1 us after the rows have come.
  template <class Tile>
  __device__ void sum(const Tile& tile, Quad& total, Quad& before) const {
    if (!tile.wave_holds_codes()) return;
    gpu::ptx::mbarrier_wait_cluster(barrier);
    if (threadIdx.x >= tile.stride / 4) return;
#pragma unroll
    for (uint32_t rank = 0; rank < kBlocks; ++rank) {
      const Quad quad = unpack_quad(row(rank)[threadIdx.x]);
      total.add(quad);
      if (rank < own_rank()) before.add(quad);
    }
  }

  // By one thread of the last block, after a __syncthreads() that followed sum().
  __device__ void report(const KernelArgs& args) const {
    uint32_t count = 0;
    uint32_t first = ~0u;
#pragma unroll 1
    for (uint32_t rank = 0; rank < kBlocks; ++rank) {
      count += faults[rank].x;
      first = min(first, faults[rank].y);
    }
    report_faults(args, count, first);
  }
};

// The grid is one cluster of kBlocks, or several.
template <class Tile, uint32_t kBlocks, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads) align_cluster(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  gpu::prefetch_args(args);
  const Tile tile(shared, args.num_codes);
  const Staged<Tile> staged{reinterpret_cast<uint32_t*>(tile.rest)};
  const ClusterCounts<kBlocks> counts(tile.rest + Staged<Tile>::kBytes, args.num_codes);
  if (threadIdx.x == 0) counts.expect();
  Tile::Wave::sync();
  gpu::ptx::mbarrier_init_fence();
  gpu::ptx::cluster_arrive_relaxed();
  tile.clear_facts();
  tile.clear_row();

  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t num_counted = count_pairs(args.source);
  const uint32_t share = even_share(num_counted, kBlocks);
  const uint32_t rank = counts.own_rank();
  const uint32_t first_pair = min(rank * share, num_counted);
  const uint32_t end = min(first_pair + share, num_counted);

  uint32_t codes[Tile::kItems];
  Faults faults;
  load_codes<Tile, kPlain>(args.source, first_pair, end, codes, faults);
  tile.rank(codes, false);
  __syncthreads();

  tile.add_faults(faults);
  const Quad in_tile = tile.sum_rows();
  if (threadIdx.x < tile.stride / 4) counts.row(rank)[threadIdx.x] = pack_quad(in_tile);
  __syncthreads();
  gpu::ptx::cluster_wait();  // all blocks are there to be written to
  counts.send(tile);
  // While the counts travel the tile is sorted.
  Quad starts;
  if (tile.wave_holds_codes()) starts = starts_of(counts.sum_below(tile, in_tile), in_tile);
  tile.spread_rows(starts);
  if (threadIdx.x == tile.stride / 4 - 1) tile.facts->num_staged = starts.of[3] + in_tile.of[3];
  __syncthreads();
  staged.stage(tile, codes);

  Quad total;
  Quad before;
  counts.sum(tile, total, before);
  Quad slots;
  tile.plan_slots(total, args, slots);
  slots.add(before);
  tile.set_shift(starts, slots);
  __syncthreads();

  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  using Roles = WaveRoles<Tile>;
  const uint32_t wave = Roles::index_in_block();
  if (Roles::writes_codes()) write_code_places(args, tile, wave * gridDim.x + blockIdx.x, Roles::kCount * gridDim.x);
  write_other_block_experts(args, tile, first, step);
  if (blockIdx.x == kBlocks - 1) {
    write_summary(args, tile);
    if (threadIdx.x == 0) counts.report(args);
  }
  // A tile's pairs are shared by the blocks of the same rank.
  TileShare tile_share =
      TileShare::of_block<Tile>(first_pair, end, tile.facts->num_staged, blockIdx.x / kBlocks, gridDim.x / kBlocks);
  tile_share.pair_slots = args.out.pair_slots != nullptr && blockIdx.x < kBlocks;
  if (tile_share.pair_slots) write_pair_slots(args, tile, codes, first_pair, end);
  write_tile<Tile, kPlain>(args, tile, tile_share, starts);
  fill_zeros(args, first, step);
}

}  // namespace mixlane::align_gpu
