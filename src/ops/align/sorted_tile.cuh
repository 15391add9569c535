// Sorting large tiles by code, into the workspace: the first phase of multi_phase_gather.cuh.
//
//   arrive    the ids of a wave's rows of pairs, in shared memory, some groups of rows ahead
//   rank      each wave counts its pairs per code in its own row of counters; what the counter held is the pair's rank
//   spread    the counters become positions in the sorted tile
//   place     a pair's number in the tile goes to its position, in shared memory
//   leave     the tile goes to the workspace. If numbers do not ascend inside a run, atomics were not in lane order: the
//             tile is placed once more, exactly
// The counters and the passes over codes are those of Tile. A pair without a code has one here, the last; what is written of
// it is never read.
#pragma once

#include "gpu/copy_to_shared.cuh"
#include "ops/align/tile.cuh"

namespace mixlane::align_gpu {

// Where sorted tiles go.
struct SortedSpace {
  uint16_t* entries;    // [max_tiles][kPairs]
  uint32_t* positions;  // [num_codes][max_tiles]: a run's first position in its tile, and its pairs << 16
  uint32_t max_tiles;
};

// What pairs that came before in the wave's rows a counter held: code | rank << 16. `counters`: two in a word.
struct RanksByAtomics {
  template <class Wave, int kCount>
  __device__ static void rank(uint16_t* counters, uint32_t (&codes)[kCount]) {
    constexpr int kBatch = 4;  // on their way
    static_assert(kCount % kBatch == 0);
    auto* const pairs_of_counters = reinterpret_cast<uint32_t*>(counters);
#pragma unroll
    for (int first = 0; first < kCount; first += kBatch) {
      uint32_t before[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        before[i] = atomicAdd(pairs_of_counters + codes[first + i] / 2, 1u << codes[first + i] % 2 * 16);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) codes[first + i] |= before[i] >> codes[first + i] % 2 * 16 << 16;
    }
  }
};

// kPlain as in load_id().
template <int kThreads_, int kItems_, int kWave_, int kBlocks_, class Ranks_ = RanksByAtomics>
class TileSorter {
 public:
  using Wave = gpu::Wave<kWave_>;
  using Ranks = Ranks_;
  using Counters = Tile<kThreads_, 4, kWave_>;
  static constexpr uint32_t kThreads = kThreads_;
  static constexpr uint32_t kItems = kItems_;
  static constexpr uint32_t kWave = kWave_;
  static constexpr uint32_t kBlocks = kBlocks_;  // of a multiprocessor
  static constexpr uint32_t kWaves = kThreads / kWave;
  static constexpr uint32_t kPairs = kThreads * kItems;
  static_assert(kPairs < 65536, "numbers in a tile take 16 bits");
  static_assert(kPairs % 64 == 0, "packets trade places among eight");

  // Rows that are waited for together, and groups of them that a wave has room for.
  static constexpr uint32_t kRows = 8;
  static constexpr uint32_t kGroups = kItems / kRows;
  static constexpr uint32_t kRing = kGroups < 2 ? 1 : 2;
  static constexpr uint32_t kGroupPairs = kRows * kWave;
  static_assert(kItems % kRows == 0 && kGroups % kRing == 0);

  // The ids arrive as whole lines of 128 bytes: where lines of shared memory end within them, each takes two turns.
  static constexpr int64_t kLineBytes = 128;
  __host__ __device__ static int64_t ring_at(uint32_t num_codes) {
    return (Counters::shared_bytes(num_codes + 1) + kLineBytes - 1) / kLineBytes * kLineBytes;
  }
  __host__ __device__ static int64_t shared_bytes(uint32_t num_codes) {
    return ring_at(num_codes) + kWaves * kRing * kGroupPairs * 4 + kPairs * 2 + kPairs / 8;
  }

  __device__ TileSorter(std::byte* shared, const KernelArgs& args, const SortedSpace& space, uint32_t num_counted,
                        bool plain)
      : args_(args),
        space_(space),
        counters_(shared, args.num_codes + 1),
        ring_(reinterpret_cast<uint32_t*>(shared + ring_at(args.num_codes)) + Wave::index_in_block() * kRing * kGroupPairs +
              Wave::lane()),
        staged_(reinterpret_cast<uint16_t*>(shared + ring_at(args.num_codes) + kWaves * kRing * kGroupPairs * 4)),
        run_starts_(reinterpret_cast<uint32_t*>(staged_ + kPairs)),
        end_(num_counted),
        num_tiles_(num_counted / kPairs + (num_counted % kPairs != 0)),
        num_fetched_(plain && reinterpret_cast<uintptr_t>(args.source.ids) % 16 == 0 ? num_counted / kPairs : 0) {}

  // This block's tiles. Reported pairs: their count and the first to `faults`.
  template <bool kPlain>
  __device__ void sort(uint32_t* faults) const {
    for (uint32_t i = threadIdx.x; i < kPairs / 32; i += kThreads) run_starts_[i] = 0;
    counters_.clear_facts();
#pragma unroll
    for (uint32_t group = 0; group < kRing; ++group) fetch(blockIdx.x, group);
    __syncthreads();
    uint32_t tile = blockIdx.x;
#pragma unroll 1
    for (; tile < num_fetched_; tile += gridDim.x) {
      uint32_t ranked[kItems];
      counters_.clear_row();
      rank_fetched(tile, ranked);
      finish<kPlain>(tile, ranked);
      if (counters_.facts->has_none) report_strays(args_, counters_.facts, tile * kPairs + number_of(0));
    }
#pragma unroll 1
    for (; tile < num_tiles_; tile += gridDim.x) {
      uint32_t ranked[kItems];
      counters_.clear_row();
      rank_any<kPlain>(tile, ranked);
      finish<kPlain>(tile, ranked);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      faults[0] = counters_.facts->fault_count;
      faults[1] = counters_.facts->fault_first;
    }
  }

 private:
  __device__ static uint32_t first_pair(uint32_t tile, uint32_t group) {
    return tile * kPairs + (Wave::index_in_block() * kItems + group * kRows) * kWave;
  }
  // This lane's words of the group's rows, kWave apart.
  __device__ uint32_t* room_of(uint32_t group) const { return ring_ + group % kRing * kGroupPairs; }

  // The ids of a group of this wave's rows are on their way, if they come as packets.
  __device__ void fetch(uint32_t tile, uint32_t group) const {
    if (tile < num_fetched_) {
      const int32_t* const from = static_cast<const int32_t*>(args_.source.ids) + first_pair(tile, group) + 4 * Wave::lane();
      uint32_t* const to = room_of(group) + 3 * Wave::lane();
#pragma unroll
      for (uint32_t i = 0; i < kRows / 4; ++i) gpu::copy_to_shared_once(to + 4 * i * kWave, from + 4 * i * kWave);
    }
    gpu::end_copy_group();
  }

  // The codes of a fetched tile, each with its rank: code | rank << 16. The next tile's ids are fetched on the way.
  __device__ void rank_fetched(uint32_t tile, uint32_t (&ranked)[kItems]) const {
    bool by_atomics = true;
#pragma unroll
    for (uint32_t group = 0; group < kGroups; ++group) {
      uint32_t* const ids = room_of(group);
      gpu::wait_for_copy_groups<kRing - 1>();
      Wave::sync();
      uint32_t codes[kRows];
#pragma unroll
      for (uint32_t i = 0; i < kRows; ++i) codes[i] = ids[i * kWave];
      // What is not an expert of this call goes to the bucket, or has no code.
      if (args_.source.bucket) {
#pragma unroll
        for (uint32_t i = 0; i < kRows; ++i) codes[i] = codes[i] < args_.source.num_experts ? codes[i] + 1 : 0;
      } else {
#pragma unroll
        for (uint32_t i = 0; i < kRows; ++i) codes[i] = min(codes[i], args_.num_codes);
      }
      // One item stands for the tile's others.
      if (group == 0) by_atomics = ranks_by_atomics(codes[0]);
      if (!by_atomics) rank_by_matching(ids, codes);
      Wave::sync();
      fetch(group + kRing < kGroups ? tile : tile + gridDim.x, (group + kRing) % kGroups);
      if (by_atomics) Ranks::template rank<Wave>(counters_.row(), codes);
#pragma unroll
      for (uint32_t i = 0; i < kRows; ++i) ranked[group * kRows + i] = codes[i];
    }
  }
  // What those ids without a code call for; a thread's own.
  __device__ __noinline__ static void report_strays(const KernelArgs& args, BlockFacts* facts, uint32_t pair) {
    Faults faults;
#pragma unroll 1
    for (uint32_t i = 0; i < kItems; ++i, pair += kWave)
      code_or_report<true>(args, load_id<true>(args.source, pair), pair, faults);
    add_faults(facts, faults);
  }

  // The same of any other tile; nothing is fetched while those are sorted.
  template <bool kPlain>
  __device__ void rank_any(uint32_t tile, uint32_t (&ranked)[kItems]) const {
    const uint32_t first = tile * kPairs + number_of(0);
    // All loads are on their way at once.
#pragma unroll
    for (uint32_t i = 0; i < kItems; ++i)
      ranked[i] = static_cast<uint32_t>(load_id<kPlain>(args_.source, min(first + i * kWave, end_ - 1)));
    Faults faults;
#pragma unroll
    for (uint32_t group = 0; group < kGroups; ++group) {
      uint32_t codes[kRows];
#pragma unroll
      for (uint32_t i = 0; i < kRows; ++i) {
        const uint32_t pair = first + (group * kRows + i) * kWave;
        const uint32_t id = ranked[group * kRows + i];
        if (pair >= end_)
          codes[i] = args_.num_codes;
        else if (kPlain && id < args_.source.num_experts)
          codes[i] = id + (args_.source.bucket ? 1 : 0);
        else
          codes[i] = code_or_report<kPlain>(args_, static_cast<int32_t>(id), pair, faults);
      }
      if (ranks_by_atomics(codes[0]))
        Ranks::template rank<Wave>(counters_.row(), codes);
      else
        rank_by_matching(room_of(0), codes);
#pragma unroll
      for (uint32_t i = 0; i < kRows; ++i) ranked[group * kRows + i] = codes[i];
    }
    counters_.add_faults(faults);
  }
  template <bool kPlain>
  __device__ static uint32_t code_or_report(const KernelArgs& args, int32_t id, uint32_t pair, Faults& faults) {
    if (!kPlain && id == kAbsent) return args.num_codes;
    const uint32_t code = code_of<kPlain>(args.source, id, pair, faults);
    if (code != kNoCode) return code;
    if (args.out.pair_slots) args.out.pair_slots[pair] = -1;
    return args.num_codes;
  }

  // One item stands for the others of a group.
  __device__ static bool ranks_by_atomics(uint32_t code) { return gpu::kAtomicsInLaneOrder && !Counters::is_crowded(code); }

  // Codes become code | rank << 16: lanes that hold the same one find each other. By way of `room`, so that it is a loop.
  __device__ void rank_by_matching(uint32_t* room, uint32_t (&codes)[kRows]) const {
    uint16_t* const counters = counters_.row();
#pragma unroll
    for (uint32_t i = 0; i < kRows; ++i) room[i * kWave] = codes[i];
#pragma unroll 1
    for (uint32_t i = 0; i < kRows; ++i) {
      const uint32_t code = room[i * kWave];
      room[i * kWave] = code | take(counters, code, Wave::template match_any<kCodeBits>(code)) << 16;
    }
#pragma unroll
    for (uint32_t i = 0; i < kRows; ++i) codes[i] = room[i * kWave];
  }
  // What a counter held, and the peers below this lane; the counter moves on.
  __device__ static uint32_t take(uint16_t* counters, uint32_t code, typename Wave::Mask peers) {
    const uint32_t below = Wave::count(peers & Wave::lanes_below());
    const uint32_t before = counters[code];
    Wave::sync();
    if (below == 0) counters[code] = static_cast<uint16_t>(before + Wave::count(peers));
    Wave::sync();
    return before + below;
  }

  template <bool kPlain>
  __device__ void finish(uint32_t tile, const uint32_t (&ranked)[kItems]) const {
    __syncthreads();
    spread(tile);
    __syncthreads();
    place(ranked);
    __syncthreads();
    const bool in_order = leave(tile);
    if (!gpu::kAtomicsInLaneOrder || !__syncthreads_or(!in_order)) return;
    place_exactly<kPlain>(args_, counters_.row(), staged_, tile * kPairs, end_);
    __syncthreads();
    leave(tile);
  }

  // Counters to positions; where the runs begin goes to the workspace.
  __device__ void spread(uint32_t tile) const {
    constexpr int kBatch = 4;  // there are few registers beside the ranked codes
    const Quad in_tile = counters_.template sum_rows<kBatch>();
    const Quad starts = starts_of(counters_.sum_below(in_tile.sum()), in_tile);
    counters_.template spread_rows<kBatch>(starts);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t code = threadIdx.x * 4 + j;
      // Of a fetched tile those are ids that are to be reported; of another one it has been done.
      if (code == args_.num_codes && in_tile.of[j] != 0) counters_.facts->has_none = 1;
      if (code < args_.num_codes)
        space_.positions[size_t{code} * space_.max_tiles + tile] = starts.of[j] | in_tile.of[j] << 16;
      if (gpu::kAtomicsInLaneOrder && in_tile.of[j] != 0) atomicOr(run_starts_ + starts.of[j] / 32, 1u << starts.of[j] % 32);
    }
  }

  __device__ static uint16_t number_of(uint32_t item) {
    return static_cast<uint16_t>((Wave::index_in_block() * kItems + item) * kWave + Wave::lane());
  }

  // Where a position lies. Where routing is balanced all runs of a tile are equally long, often a multiple of what lies in
  // all banks once (64 numbers), and lanes with neighbouring codes would meet in one bank: packets trade places, eight at a
  // time.
  __device__ static uint32_t place_of_packet(uint32_t packet) { return packet ^ ((packet >> 3 ^ packet >> 6) & 7); }
  __device__ static uint32_t place_of(uint32_t position) { return place_of_packet(position / 8) * 8 + position % 8; }

  __device__ void place(const uint32_t (&ranked)[kItems]) const {
    const uint16_t* const positions = counters_.row();
#pragma unroll
    for (uint32_t i = 0; i < kItems; ++i)
      staged_[place_of(positions[ranked[i] & 0xffffu] + (ranked[i] >> 16))] = number_of(i);
  }

  // The tile to the workspace. Whether all runs ascend, as far as this thread sees.
  __device__ bool leave(uint32_t tile) const {
    constexpr uint32_t kNumbers = 8;  // of a packet
    auto* const to = reinterpret_cast<gpu::Packet*>(space_.entries + size_t{tile} * kPairs);
    bool in_order = true;
#pragma unroll
    for (uint32_t i = 0; i < kPairs / kNumbers / kThreads; ++i) {
      const uint32_t at = i * kThreads + threadIdx.x;
      const gpu::Packet packet = reinterpret_cast<const gpu::Packet*>(staged_)[place_of_packet(at)];
      gpu::store_packet(to + at, packet);
      if constexpr (gpu::kAtomicsInLaneOrder) in_order &= ascends(packet, at);
    }
    return in_order;
  }

  // Whether each of the packet's numbers is above the one before, or begins a run. The marks of runs are cleared.
  __device__ bool ascends(const gpu::Packet& packet, uint32_t at) const {
    auto* const starts = reinterpret_cast<uint8_t*>(run_starts_) + at;
    const uint32_t begins = *starts;
    *starts = 0;
    const uint32_t last = packet.words[3] >> 16;
    uint32_t before = Wave::shuffle_up(last, 1);
    if (Wave::lane() == 0) before = at == 0 ? 0 : staged_[place_of(at * 8 - 1)];
    uint32_t falls = 0;
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) {
      const uint32_t number = j % 2 == 0 ? packet.words[j / 2] & 0xffffu : packet.words[j / 2] >> 16;
      falls |= (number <= before ? 1u : 0u) << j;
      before = number;
    }
    return (falls & ~begins) == 0;
  }

  // A row after the other, without a rank: positions move on as pairs take them.
  template <bool kPlain>
  __device__ __noinline__ static void place_exactly(const KernelArgs& args, uint16_t* positions, uint16_t* staged,
                                                    uint32_t first_pair, uint32_t end) {
    Faults reported_before;
#pragma unroll 1
    for (uint32_t i = 0; i < kItems; ++i) {
      const uint32_t pair = first_pair + number_of(i);
      const uint32_t code = pair < end
                                ? code_or_report<kPlain>(args, load_id<kPlain>(args.source, pair), pair, reported_before)
                                : args.num_codes;
      staged[place_of(take(positions, code, Counters::template find_by_ballots<kCodeBits>(code)))] = number_of(i);
    }
  }

  const KernelArgs& args_;
  SortedSpace space_;
  Counters counters_;
  uint32_t* ring_;        // this lane's first word of its wave's [kRing][kRows][kWave]
  uint16_t* staged_;      // [kPairs], by place_of()
  uint32_t* run_starts_;  // [kPairs / 32]: a bit per position
  uint32_t end_;
  uint32_t num_tiles_;
  uint32_t num_fetched_;  // tiles whose ids come as packets: the first ones
};

}  // namespace mixlane::align_gpu
