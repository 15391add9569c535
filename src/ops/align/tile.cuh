// The stable sort of one tile of pairs inside a block, and the plan that turns counts into slots.
//
// A tile is cut into one run of consecutive pairs per wave; item i of a wave is the next kWave pairs, one per lane.
//   rank      each wave counts its pairs per code in its own row of `counts`; what the counter held is the pair's rank
//             inside (wave, code)
//   sum       totals per code over the rows
//   spread    the rows become positions in the sorted tile: start of the code + pairs of earlier waves
//   stage     pairs go to their positions; runs of equal codes are then consecutive there and in the output
#pragma once

#include "ops/align/pairs.cuh"

namespace mixlane::align_gpu {

// Four neighbouring codes: what one thread handles in the passes over codes.
struct Quad {
  uint32_t of[4] = {0, 0, 0, 0};
  __device__ uint32_t sum() const { return of[0] + of[1] + of[2] + of[3]; }
  __device__ void add(const Quad& other) {
#pragma unroll
    for (int j = 0; j < 4; ++j) of[j] += other.of[j];
  }
};

__device__ inline Quad unpack_quad(uint2 packed) {
  return {{packed.x & 0xffffu, packed.x >> 16, packed.y & 0xffffu, packed.y >> 16}};
}
__device__ inline uint2 pack_quad(const Quad& quad) {
  return make_uint2(quad.of[0] | quad.of[1] << 16, quad.of[2] | quad.of[3] << 16);
}
// Where each of the codes starts, the first one at `start`.
__device__ inline Quad starts_of(uint32_t start, const Quad& counts) {
  Quad starts;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    starts.of[j] = start;
    start += counts.of[j];
  }
  return starts;
}

__host__ __device__ constexpr uint32_t num_quads(uint32_t num_codes) { return (num_codes + 3) / 4; }

// Facts of a block that one thread each writes.
struct alignas(16) BlockFacts {
  uint32_t num_kept;    // pairs with a slot, over all blocks
  uint32_t num_staged;  // of this block's tile
  uint32_t fault_count;
  uint32_t fault_first;
  uint32_t has_long_code;  // one whose output blocks are more than a wave's lanes
  uint32_t has_none;       // a pair without a code
};

__device__ inline void add_faults(BlockFacts* facts, const Faults& faults) {
  if (faults.count == 0) return;
  atomicAdd(&facts->fault_count, faults.count);
  atomicMin(&facts->fault_first, faults.first);
}

// Where codes' pairs go, the same in every block: what a block's threads, four codes each, find out together.
template <int kThreads_, int kWave_>
struct Plan {
  using Wave = gpu::Wave<kWave_>;
  static constexpr int kThreads = kThreads_;
  static constexpr int kWave = kWave_;
  static constexpr int kWaves = kThreads / kWave;

  // The block's shared memory.
  uint64_t* wave_sums;  // [2][kWaves]: of sum_below() and of plan_slots()
  BlockFacts* facts;
  uint32_t* offsets;  // [stride + 1]: first slot of each code, then the end
  uint32_t* totals;   // [stride]: pairs per code
  uint32_t* shift;    // [stride]: slot minus position in the tile
  uint32_t stride;
  std::byte* rest;  // what the kernel adds, aligned to 16

  __host__ __device__ static constexpr int64_t shared_bytes(uint32_t num_codes) {
    const int64_t padded = int64_t{num_quads(num_codes)} * 4;
    return kWaves * int64_t{16} + int64_t{sizeof(BlockFacts)} + (padded + 4) * 4 + padded * 4 * 2;
  }

  __device__ Plan(std::byte* shared, uint32_t num_codes) : stride(num_quads(num_codes) * 4) {
    wave_sums = reinterpret_cast<uint64_t*>(shared);
    facts = reinterpret_cast<BlockFacts*>(wave_sums + 2 * kWaves);
    offsets = reinterpret_cast<uint32_t*>(facts + 1);
    totals = offsets + stride + 4;
    shift = totals + stride;
    rest = shared + shared_bytes(num_codes);
  }

  __device__ void clear_facts() const {
    if (threadIdx.x == 0) *facts = {0, 0, 0, ~0u, 0, 0};
  }

  // `slots`: of the first pair in the tile of each of this thread's codes.
  __device__ void set_shift(const Quad& starts, const Quad& slots) const {
    if (threadIdx.x >= stride / 4) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) shift[threadIdx.x * 4 + j] = slots.of[j] - starts.of[j];
  }

  // Sum over the threads below this one, for those that hold codes. Contains one __syncthreads().
  __device__ uint32_t sum_below(uint32_t value) const { return sum_below(value, reinterpret_cast<uint32_t*>(wave_sums)); }

  template <class T>
  __device__ T sum_below(T value, T* sums) const {
    T inclusive = 0;
    if (wave_holds_codes()) {
      inclusive = Wave::inclusive_sum(value);
      if (Wave::lane() == kWave - 1) sums[Wave::index_in_block()] = inclusive;
    }
    __syncthreads();
    T below = inclusive - value;
    if (wave_holds_codes())
#pragma unroll 1
      for (uint32_t w = 0; w < Wave::index_in_block(); ++w) below += sums[w];
    return below;
  }

  // The first waves, whole ones of the hardware, do the passes over codes; the others only meet them at the barriers.
  __device__ bool wave_holds_codes() const { return threadIdx.x / gpu::kHardwareWave * gpu::kHardwareWave < stride / 4; }

  // From the totals of this thread's codes over all pairs: offsets, totals, facts->num_kept (complete after the caller's
  // next __syncthreads()), and the first slots of its codes. Returns the pairs of all codes below this thread's first.
  __device__ uint32_t plan_slots(const Quad& total, const KernelArgs& args, Quad& slots) const {
    return plan_slots<uint64_t>(total, args, slots, [&](uint64_t value) { return sum_below(value, wave_sums + kWaves); });
  }

  // The same with the caller's sum over the threads below this one. Sum: its upper half holds output blocks, the lower one
  // pairs.
  template <class Sum, class SumBelow>
  __device__ uint32_t plan_slots(const Quad& total, const KernelArgs& args, Quad& slots, SumBelow&& sum_below) const {
    constexpr int kHalf = sizeof(Sum) * 4;
    Quad blocks;
    const uint32_t first = threadIdx.x * 4;
    bool has_long_code = false;
#pragma unroll
    for (int j = 0; j < 4 && wave_holds_codes(); ++j) {
      blocks.of[j] = gpu::divide(total.of[j] + args.by_block.divisor - 1, args.by_block);
      has_long_code |= blocks.of[j] > kWave;
    }
    if (has_long_code) facts->has_long_code = 1;
    const Sum below = sum_below(static_cast<Sum>(Sum{blocks.sum()} << kHalf | total.sum()));
    const auto pairs_below = static_cast<uint32_t>(below & ((Sum{1} << kHalf) - 1));
    if (first < stride) {
      slots = starts_of(static_cast<uint32_t>(below >> kHalf), blocks);
      const uint32_t end = (slots.of[3] + blocks.of[3]) * args.by_block.divisor;
#pragma unroll
      for (int j = 0; j < 4; ++j) slots.of[j] *= args.by_block.divisor;
      *reinterpret_cast<uint4*>(offsets + first) = make_uint4(slots.of[0], slots.of[1], slots.of[2], slots.of[3]);
      *reinterpret_cast<uint4*>(totals + first) = make_uint4(total.of[0], total.of[1], total.of[2], total.of[3]);
      if (first + 4 == stride) {
        offsets[stride] = end;
        facts->num_kept = pairs_below + total.sum();
      }
    }
    return pairs_below;
  }

  __device__ void add_faults(const Faults& faults) const { align_gpu::add_faults(facts, faults); }
};

// Lanes that meet at one counter take turns; from half a wave on they had better find each other.
__device__ inline bool is_crowded(uint32_t code) {
  using Wave = gpu::Wave<gpu::kHardwareWave>;
  const uint32_t first = Wave::shuffle(code, 0);
  return Wave::count(Wave::ballot(code != kNoCode && code == first)) > gpu::kHardwareWave / 2;
}

template <int kThreads_, int kItems_, int kWave_>
struct Tile : Plan<kThreads_, kWave_> {
  using Base = Plan<kThreads_, kWave_>;
  using typename Base::Wave;
  using Base::kThreads;
  using Base::kWave;
  using Base::kWaves;
  using Base::stride;
  static constexpr int kItems = kItems_;
  static constexpr int kPairs = kThreads * kItems;
  static_assert(kPairs < 65536, "positions are kept in 16 bits");

  // Whether a block takes so many pairs, four codes per thread.
  static constexpr bool fits(uint32_t num_pairs, uint32_t num_codes) {
    return num_pairs <= kPairs && num_quads(num_codes) <= kThreads;
  }

  uint16_t* counts;  // [kWaves][stride]

  __host__ __device__ static constexpr int64_t shared_bytes(uint32_t num_codes) {
    const int64_t counts_bytes = kWaves * int64_t{num_quads(num_codes)} * 8;
    return (Base::shared_bytes(num_codes) + counts_bytes + 15) / 16 * 16;
  }

  __device__ Tile(std::byte* shared, uint32_t num_codes) : Base(shared, num_codes) {
    counts = reinterpret_cast<uint16_t*>(this->rest);
    this->rest = shared + shared_bytes(num_codes);
  }

  __device__ uint16_t* row() const { return counts + Wave::index_in_block() * stride; }

  // The pair of this thread's item, relative to the tile.
  __device__ static uint32_t pair_of(uint32_t item) {
    return (Wave::index_in_block() * kItems + item) * kWave + Wave::lane();
  }

  __device__ void clear_row() const {
    auto* quads = reinterpret_cast<uint2*>(row());
#pragma unroll 1
    for (uint32_t i = Wave::lane(); i < stride / 4; i += kWave) quads[i] = make_uint2(0, 0);
    Wave::sync();
  }

  // codes[i] becomes code | rank << 16; kNoCode stays. Unless `exact`, the ranks of equal codes may have changed places
  // where atomics are not in lane order: to be checked where pairs are written.
  __device__ void rank(uint32_t (&codes)[kItems], bool exact) const {
    constexpr int kFewBits = 9;  // tell as many codes and kNoCode apart
    if (exact && stride < 1u << kFewBits)
      rank_by_matching(codes, Wave::template match_by_ballots<kFewBits>);
    else if (exact)
      rank_by_matching(codes, Wave::template match_by_ballots<kCodeBits>);
    else if (gpu::kAtomicsInLaneOrder && (kItems < kFewestToAskFor || !is_crowded(codes[0])))
      rank_by_atomics(codes);
    else
      rank_by_matching(codes, Wave::template match_any<kCodeBits>);
  }

  // Of fewer items a wave's turns take about as long as finding out whether it is crowded.
  static constexpr int kFewestToAskFor = 3;

  __device__ void rank_by_atomics(uint32_t (&codes)[kItems]) const {
    auto* const pairs_of_counters = reinterpret_cast<uint32_t*>(row());
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const uint32_t code = codes[i];
      const uint32_t half = code % 2 * 16;
      codes[i] = code | gpu::add_shared_if(code != kNoCode, pairs_of_counters + code / 2, 1u << half) >> half << 16;
    }
  }

  // The lanes that hold the same code find each other, so ranks are exact without atomics.
  template <class Find>
  __device__ void rank_by_matching(uint32_t (&codes)[kItems], Find find) const {
    uint16_t* const counters = row();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const uint32_t code = codes[i];
      const auto peers = find(code);
      const uint32_t below = Wave::count(peers & Wave::lanes_below());
      const uint32_t before = code == kNoCode ? 0 : counters[code];
      Wave::sync();
      if (below == 0 && code != kNoCode) counters[code] = static_cast<uint16_t>(before + Wave::count(peers));
      Wave::sync();
      codes[i] = code | (before + below) << 16;
    }
  }

  // Totals over the waves of this thread's four codes. After a __syncthreads(). kBatch: loads in flight.
  template <int kBatch = kWaves>
  __device__ Quad sum_rows() const {
    uint2 sum = make_uint2(0, 0);
    if (threadIdx.x < stride / 4) {
      const auto* quads = reinterpret_cast<const uint2*>(counts) + threadIdx.x;
#pragma unroll kBatch
      for (int w = 0; w < kWaves; ++w) {
        const uint2 add = quads[w * (stride / 4)];
        sum.x += add.x;  // a tile has fewer than 2^16 pairs: no carry between the halves
        sum.y += add.y;
      }
    }
    return unpack_quad(sum);
  }

  // Counts become positions; `starts` are those of this thread's codes in the sorted tile. kBatch: loads in flight, as the
  // compiler can't move them over the stores.
  template <int kBatch = (kWaves < 8 ? kWaves : 8)>
  __device__ void spread_rows(const Quad& starts) const {
    if (threadIdx.x >= stride / 4) return;
    uint2 position = pack_quad(starts);
    auto* quads = reinterpret_cast<uint2*>(counts) + threadIdx.x;
    static_assert(kWaves % kBatch == 0);
#pragma unroll 1
    for (int first = 0; first < kWaves; first += kBatch) {
      uint2 in_row[kBatch];
#pragma unroll
      for (int w = 0; w < kBatch; ++w) in_row[w] = quads[(first + w) * (stride / 4)];
#pragma unroll
      for (int w = 0; w < kBatch; ++w) {
        quads[(first + w) * (stride / 4)] = position;
        position.x += in_row[w].x;
        position.y += in_row[w].y;
      }
    }
  }

};

// Ids, as they lie in memory, to codes: of this thread's pairs, the first of which is `first`. Pairs from `end` on have
// none.
template <class Tile, bool kPlain>
__device__ void resolve_codes(const PairSource& source, uint32_t first, uint32_t end, uint32_t (&codes)[Tile::kItems],
                              Faults& faults) {
  // What nearly every pair is: an expert of this call.
  bool usual = kPlain && first + (Tile::kItems - 1) * Tile::kWave < end;
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i) usual = usual && codes[i] < source.num_experts;
  if (usual) {
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) codes[i] += source.bucket ? 1 : 0;
    return;
  }
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i) {
    const uint32_t pair = first + i * Tile::kWave;
    codes[i] = pair < end ? code_of<kPlain>(source, static_cast<int32_t>(codes[i]), pair, faults) : kNoCode;
  }
}

// The codes of this thread's pairs of the tile that starts at `first_pair`; pairs from `end` on have none.
template <class Tile, bool kPlain>
__device__ void load_codes(const PairSource& source, uint32_t first_pair, uint32_t end, uint32_t (&codes)[Tile::kItems],
                           Faults& faults) {
  if (first_pair >= end) {
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) codes[i] = kNoCode;
    return;
  }
  const uint32_t first = first_pair + Tile::pair_of(0);
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i)
    codes[i] = static_cast<uint32_t>(load_id<kPlain>(source, min(first + i * Tile::kWave, end - 1)));
  resolve_codes<Tile, kPlain>(source, first, end, codes, faults);
}

// Pairs per block when `num_pairs` are spread evenly, whole waves each.
__host__ __device__ inline uint32_t even_share(uint32_t num_pairs, uint32_t num_blocks) {
  return (num_pairs / num_blocks + (num_pairs % num_blocks != 0) + 31) / 32 * 32;
}

}  // namespace mixlane::align_gpu
