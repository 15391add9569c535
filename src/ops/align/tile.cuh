// The stable sort of one tile of pairs inside a block, and the plan that turns counts into slots.
//
// A tile is cut into one run of consecutive pairs per wave; item i of a wave is the next kWave pairs, one per lane.
//   rank      each wave counts its pairs per code in its own row of `counts`; what the counter held is the pair's rank
//             inside (wave, code)
//   sum       totals per code over the rows
//   spread    the rows become positions in the sorted tile: start of the code + pairs of earlier waves
//   stage     pairs go to their positions; runs of equal codes are then consecutive there and in the output
#pragma once

#include "ops/align/plan.cuh"

namespace mixlane::align_gpu {

// Lanes that meet at one counter take turns; from half a wave on they had better find each other.
__device__ inline bool is_crowded(uint32_t code) {
  using Wave = gpu::Wave<gpu::kHardwareWave>;
  const uint32_t first = Wave::shuffle(code, 0);
  return Wave::count(Wave::ballot(code != kNoCode && code == first)) > gpu::kHardwareWave / 2;
}

template <int kThreads_, int kItems_, int kWave_>
struct Tile : Plan<kThreads_, kWave_> {
  using Base = Plan<kThreads_, kWave_>;
  using Base::kThreads;
  using Base::kWave;
  using Base::kWaves;
  using Base::stride;
  using typename Base::Wave;
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
