// align.cluster (sm_90): clusters of blocks, a tile each; every block writes its counts into the shared memory of its
// cluster's others and waits for theirs, where multi_phase needs two barriers of the grid. Of few pairs several clusters
// sort all and write a share each, as oneshot's blocks do: the stores take more multiprocessors than the sorting.
#pragma once

#include "gpu/ptx/cluster.cuh"
#include "gpu/ptx/warpgroup.cuh"
#include "ops/align/direct.cuh"

namespace mixlane::align_gpu {

// A grid: clusters that sort the same pairs, to share the stores.
// kMaxCodes: what counters are laid out for, so that no address has to be computed from the number of codes.
// kStaged: pairs are sorted in shared memory on their way to their slots, where there are many.
template <int kThreads_, int kItems_, uint32_t kBlocks_, uint32_t kClusters_, uint32_t kMaxCodes_>
struct ClusterShape {
  using Tile = align_gpu::Tile<kThreads_, kItems_, 32>;
  static constexpr uint32_t kBlocks = kBlocks_;  // of a cluster
  static constexpr uint32_t kClusters = kClusters_;
  static constexpr uint32_t kMaxCodes = kMaxCodes_;
  static constexpr uint32_t kPairs = kBlocks * Tile::kPairs;
  static constexpr bool kStaged = Tile::kItems >= 4;

  // Threads with four codes each, by whole waves.
  static constexpr uint32_t kHolders = num_quads(kMaxCodes);
  static constexpr uint32_t kHolderWaves = (kHolders + Tile::kWave - 1) / Tile::kWave;
  static_assert(kMaxCodes % 4 == 0 && kHolderWaves <= Tile::kWaves);
  // A code's pairs of all blocks fit in 16 bits.
  static constexpr bool kNarrow = kPairs < 65536;

  static constexpr int64_t kTileBytes = kStaged ? Staged<Tile>::kBytes : Direct<Tile>::kBytes;
};

// What the blocks of a cluster tell each other: in tile.rest behind the staged pairs.
template <class Shape>
struct ClusterCounts {
  using Tile = typename Shape::Tile;
  static constexpr uint32_t kBlocks = Shape::kBlocks;
  static constexpr uint32_t kOthers = kBlocks - 1;
  static constexpr uint32_t kRowBytes = Shape::kHolders * sizeof(uint2);

  uint2 (*rows)[Shape::kHolders];  // [kBlocks]: four codes each, 16 bits per code
  uint2* faults;                   // [kBlocks]: (count, first) of reported pairs; complete in the last block only
  uint64_t* barrier;               // what the others send is there
  uint32_t others[kOthers];        // this thread's place of this block's row in the others' memory
  uint32_t to_barrier;             // from there on to the barrier of that block

  static constexpr int64_t kBytes = int64_t{kBlocks} * (kRowBytes + sizeof(uint2)) + sizeof(uint64_t);

  __device__ explicit ClusterCounts(std::byte* memory)
      : rows(reinterpret_cast<uint2 (*)[Shape::kHolders]>(memory)),
        faults(reinterpret_cast<uint2*>(memory + kBlocks * kRowBytes)),
        barrier(reinterpret_cast<uint64_t*>(faults + kBlocks)) {}

  __device__ static uint32_t own_rank() { return blockIdx.x % kBlocks; }
  __device__ static bool holds() { return threadIdx.x < Shape::kHolders; }

  // Of all threads, before the blocks meet.
  __device__ void prepare() {
    if (threadIdx.x == 0) {
      gpu::ptx::mbarrier_init(barrier, 1);
      gpu::ptx::mbarrier_arrive_expect(barrier, kOthers * (kRowBytes + (own_rank() == kOthers ? sizeof(uint2) : 0)));
    }
    gpu::ptx::mbarrier_init_fence();
    const uint2* const place = rows[own_rank()] + min(threadIdx.x, Shape::kHolders - 1);
#pragma unroll
    for (uint32_t i = 0; i < kOthers; ++i) others[i] = gpu::ptx::map_shared(place, (own_rank() + 1 + i) % kBlocks);
    to_barrier = gpu::ptx::shared_address(barrier) - gpu::ptx::shared_address(place);
  }

  // This thread's codes to all blocks.
  __device__ void send(const Quad& in_tile) const {
    const uint2 packed = pack_quad(in_tile);
    rows[own_rank()][threadIdx.x] = packed;
#pragma unroll
    for (const uint32_t other : others) gpu::ptx::store_async(other, packed, other + to_barrier);
  }

  // Sums of this thread's codes: over all blocks, and over those before this one. Waits for the rows, by whole waves: part
  // of one that has to wait sleeps on for about 1 us after they have come.
  __device__ void sum(Quad& total, Quad& before) const {
    gpu::ptx::mbarrier_wait_cluster(barrier);
    if (!holds()) return;
    if constexpr (Shape::kNarrow) {
      uint2 all = make_uint2(0, 0);
      uint2 below = make_uint2(0, 0);
#pragma unroll
      for (uint32_t rank = 0; rank < kBlocks; ++rank) {
        const uint2 row = rows[rank][threadIdx.x];
        all.x += row.x;
        all.y += row.y;
        if (rank < own_rank()) below.x += row.x, below.y += row.y;
      }
      total = unpack_quad(all);
      before = unpack_quad(below);
    } else {
#pragma unroll
      for (uint32_t rank = 0; rank < kBlocks; ++rank) {
        const Quad row = unpack_quad(rows[rank][threadIdx.x]);
        total.add(row);
        if (rank < own_rank()) before.add(row);
      }
    }
  }

  // By one thread, when the block's are complete: to the last block.
  __device__ void send_faults(const BlockFacts& facts) const {
    const uint2 own = make_uint2(facts.fault_count, facts.fault_first);
    if (own_rank() == kOthers)
      faults[kOthers] = own;
    else
      gpu::ptx::store_async(gpu::ptx::map_shared(faults + own_rank(), kOthers), own, gpu::ptx::map_shared(barrier, kOthers));
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

// The waves that hold codes, and what they do while the others wait for them.
template <class Shape>
struct Holders {
  using Tile = typename Shape::Tile;
  static constexpr uint32_t kWaves = Shape::kHolderWaves;
  static constexpr uint32_t kOtherWaves = Tile::kWaves - kWaves;

  __device__ static bool has_this_thread() { return threadIdx.x < kWaves * Tile::kWave; }

  // Sum over the threads below this one. By all holders, and others_keep_pace() by the others.
  template <class T>
  __device__ static T sum_below(T value, T* sums) {
    using Wave = typename Tile::Wave;
    const T inclusive = Wave::inclusive_sum(value);
    T below = inclusive - value;
    if constexpr (kWaves > 1) {
      if (Wave::lane() == Tile::kWave - 1) sums[Wave::index_in_block()] = inclusive;
      gpu::ptx::sync_threads(1, kWaves * Tile::kWave);
#pragma unroll
      for (uint32_t w = 0; w + 1 < kWaves; ++w)
        if (w < Wave::index_in_block()) below += sums[w];
    }
    return below;
  }

  // A barrier of their own: compute-sanitizer's racecheck takes waves that have come by different numbers of barriers for
  // unordered, whatever barrier they meet at next.
  __device__ static void others_keep_pace() {
    if constexpr (kWaves > 1 && kOtherWaves > 0) gpu::ptx::sync_threads(2, kOtherWaves * Tile::kWave);
  }
};

// This block's share of the output. `starts`: where this thread's codes start in the tile.
template <class Shape, bool kPlain>
__device__ void write_share(const KernelArgs& args, const typename Shape::Tile& tile,
                            const uint32_t (&ranked)[Shape::Tile::kItems], const PairRange& range, const Quad& starts) {
  using Tile = typename Shape::Tile;
  const uint32_t cluster = blockIdx.x / Shape::kBlocks;
  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  constexpr uint32_t kGrid = Shape::kBlocks * Shape::kClusters;
  constexpr uint32_t kStep = kGrid * Tile::kThreads;
  const bool pair_slots = args.out.pair_slots != nullptr && cluster == 0;
  if constexpr (Shape::kStaged) {
    using Roles = WaveRoles<Tile>;
    if (Roles::writes_codes())
      write_code_places(args, tile, Roles::index_in_block() * kGrid + blockIdx.x, Roles::kCount * kGrid);
  } else {
    const auto roles = DirectRoles<Tile>::of(cluster, Shape::kClusters);
    const Direct<Tile> direct{reinterpret_cast<uint16_t*>(tile.rest)};
    direct.template write<kPlain>(args, tile, ranked, range.begin, range.end, roles.writes_pairs, pair_slots);
    if (roles.writes_codes) write_code_places(args, tile, roles.index * kGrid + blockIdx.x, roles.count * kGrid);
  }
  write_other_block_experts(args, tile, first, kStep);
  if (blockIdx.x == Shape::kBlocks - 1) write_summary(args, tile);
  if constexpr (Shape::kStaged) {
    // A tile's pairs are shared by the blocks of the same rank.
    auto share = TileShare::of_block<Tile>(range.begin, range.end, tile.facts->num_staged, cluster, Shape::kClusters);
    share.pair_slots = pair_slots;
    if (pair_slots) write_pair_slots(args, tile, ranked, range.begin, range.end);
    write_tile<Tile, kPlain>(args, tile, share, starts);
  }
  fill_zeros(args, first, kStep);
}

// The grid is one cluster of Shape::kBlocks, or several.
template <class Shape, bool kPlain>
__global__ void __launch_bounds__(Shape::Tile::kThreads) align_cluster(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  using Tile = typename Shape::Tile;
  using Holders = align_gpu::Holders<Shape>;
  extern __shared__ __align__(16) std::byte shared[];
  gpu::prefetch_args(args);
  const Tile tile(shared, Shape::kMaxCodes);
  ClusterCounts<Shape> counts(tile.rest + Shape::kTileBytes);
  counts.prepare();
  tile.clear_facts();
  __syncthreads();  // orders the cleared facts before what the other waves find
  gpu::ptx::cluster_arrive_relaxed();
  tile.clear_row();
  gpu::ptx::cluster_wait();  // all blocks are there to be written to, their barriers too

  uint32_t codes[Tile::kItems];
  Faults faults;
  const PairRange range = wait_and_load<Tile, kPlain>(args.source, counts.own_rank(), Shape::kBlocks, codes, faults);
  tile.add_faults(faults);
  tile.rank(codes, false);
  __syncthreads();

  if (threadIdx.x == Tile::kThreads - 1) counts.send_faults(*tile.facts);
  auto* const sums = reinterpret_cast<uint32_t*>(tile.wave_sums);
  Quad in_tile;
  Quad starts;
  if (Holders::has_this_thread()) {
    in_tile = tile.sum_rows();
    if (counts.holds()) counts.send(in_tile);
    // While the counts travel the tile is sorted.
    starts = starts_of(Holders::sum_below(in_tile.sum(), sums), in_tile);
    tile.spread_rows(starts);
  } else {
    Holders::others_keep_pace();
  }
  if constexpr (Shape::kStaged) {
    if (threadIdx.x == Shape::kHolders - 1) tile.facts->num_staged = starts.of[3] + in_tile.of[3];
    __syncthreads();
    Staged<Tile>{reinterpret_cast<uint32_t*>(tile.rest)}.stage(tile, codes);
  }
  if (Holders::has_this_thread()) {
    Quad total;
    Quad before;
    counts.sum(total, before);
    using Sum = std::conditional_t<Shape::kNarrow, uint32_t, uint64_t>;
    auto* const plan_sums = reinterpret_cast<Sum*>(tile.wave_sums + Tile::kWaves);
    Quad slots;
    tile.template plan_slots<Sum>(total, args, slots, [&](Sum value) { return Holders::sum_below(value, plan_sums); });
    slots.add(before);
    tile.set_shift(starts, slots);
  } else {
    Holders::others_keep_pace();
  }
  __syncthreads();

  write_share<Shape, kPlain>(args, tile, codes, range, starts);
  if (blockIdx.x == Shape::kBlocks - 1 && threadIdx.x == 0) counts.report(args);
}

}  // namespace mixlane::align_gpu
