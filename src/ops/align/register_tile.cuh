// Sorting tiles of up to 64 K pairs in a block: the first half of multi_phase_many.cuh.
//
//   load     ids become codes, two in a register; each wave counts its own in a row of counters
//   spread   the counters become positions in the sorted tile
//   rank     a counter moves on as a pair takes its position, which replaces its code
//   put      the pair's number in the tile goes to its position, in shared memory
//
// A tile is ranked and put while the ids of the next one are on their way: their counters are another set. A pair without a
// code has one here, its lane's, with a counter, and no place.
//
// Lanes that meet at one counter take turns. What most lanes of a wave hold, one code, is ranked by ballots. Atomics that
// are not in lane order show where the sorted tile is written; then everything is placed exactly, in loops that read the ids
// again: registers can't be indexed.
#pragma once

#include "gpu/load_if.cuh"
#include "ops/align/counting.cuh"
#include "ops/align/tile.cuh"

namespace mixlane::align_gpu {

// kMaxRows: of a wave in one tile. kPlain: as in load_id(), and pairs that are no experts are dropped.
template <int kThreads_, int kMaxRows_, int kWave_, bool kPlain_, class Counter_, class Takes_ = TakesByAtomics>
class RegisterTile {
 public:
  using Wave = gpu::Wave<kWave_>;
  using Takes = Takes_;
  using Counter = Counter_;
  using Plan = align_gpu::Plan<kThreads_, kWave_>;
  static constexpr bool kPlain = kPlain_;
  static constexpr uint32_t kThreads = kThreads_;
  static constexpr uint32_t kWave = kWave_;
  static constexpr uint32_t kWaves = kThreads / kWave;
  static constexpr uint32_t kMaxRows = kMaxRows_;

  // Rows whose ids are on their way together, and those whose atomics are.
  static constexpr uint32_t kGroup = 18;
  static constexpr uint32_t kBatch = 9;
  static_assert(kMaxRows % kGroup == 0 && kMaxRows * kThreads < 65536, "positions take 16 bits");

  // A wave's share of a tile in its registers.
  struct Held {
    uint32_t words[kMaxRows / 2];  // codes, then positions
    uint32_t rows;                 // the same in all waves that are parts of one of the hardware's
    uint32_t first_pair;           // of the wave
    uint32_t end_pair;
    uint32_t set;  // of counters
  };

  // Two numbers are left out behind every four codes: where routing is balanced, runs of equal lengths would else begin in
  // one bank of shared memory, and lanes with neighbouring codes meet there.
  static constexpr uint32_t kGap = 2;
  // Places of a sorted tile of so many pairs, the gaps with them.
  __host__ __device__ static constexpr uint32_t places_of(uint32_t num_pairs, uint32_t num_codes) {
    return num_pairs + kGap * num_quads(num_codes);
  }
  // Whether positions fit in 16 bits, those that pairs without a code seem to have with them.
  __host__ __device__ static constexpr bool fits(uint32_t num_pairs, uint32_t num_codes) {
    return places_of(num_pairs, num_codes) + kMaxRows < 65536;
  }
  __host__ __device__ static constexpr uint32_t num_counters(uint32_t num_codes) { return num_quads(num_codes + kWave) * 4; }
  __host__ __device__ static int64_t shared_bytes(uint32_t num_codes) {
    return Plan::shared_bytes(num_codes) + 2 * int64_t{kWaves} * num_counters(num_codes) * sizeof(Counter) +
           (kPlain ? 0 : kThreads * kGroup * 2);
  }

  // In shared_bytes() of shared memory. Tiles are of `rows` rows of each wave; the block's pairs end at `end_pair`.
  __device__ RegisterTile(std::byte* shared, const KernelArgs& args, uint32_t rows, uint32_t end_pair)
      : plan(shared, args.num_codes),
        args_(args),
        sets_(reinterpret_cast<Counter*>(plan.rest)),
        rows_(rows),
        end_(end_pair) {
    room_ = reinterpret_cast<uint16_t*>(sets_ + 2 * kWaves * pitch()) + threadIdx.x;
  }

  Plan plan;

  __device__ uint32_t num_pairs() const { return rows_ * kThreads; }

  // Loads and counts the tile that starts at `first_pair`.
  __device__ void load(Held& held, uint32_t first_pair) const { replace<false>(held, nullptr, first_pair); }
  // The same while the held tile, whose counters are spread, is placed.
  __device__ void place_and_load(Held& held, uint16_t* staged, uint32_t first_pair) const {
    if (ranks_by_atomics(held)) {
      replace<true>(held, staged, first_pair);
    } else {
      rank(held);
      put(held, staged);
      held.set ^= 1;
      load(held, first_pair);
    }
  }

  // Of this thread's codes in the loaded tile. After a __syncthreads().
  __device__ Quad counts(const Held& held) const {
    Quad in_tile;
    const uint32_t first = threadIdx.x * 4;
    if (first >= args_.num_codes) return in_tile;
    const Counter* const counters = first_row_of(held) + first;
#pragma unroll 8
    for (uint32_t w = 0; w < kWaves; ++w) in_tile.add(Counting<Counter>::load(counters + w * pitch()));
      // Behind the last code are the counters of pairs without one.
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      if (first + j >= args_.num_codes) in_tile.of[j] = 0;
    return in_tile;
  }

  // Counters to positions; where each code's run begins goes to runs[code], with its pairs << 16. `in_tile`: counts().
  // Contains one __syncthreads(), and is complete after another.
  __device__ void spread(const Held& held, const Quad& in_tile, uint32_t* runs) const {
    const uint32_t first = threadIdx.x * 4;
    Quad starts = starts_of(plan.sum_below(in_tile.sum() + kGap), in_tile);
    if (first >= args_.num_codes) return;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) runs[first + j] = starts.of[j] | in_tile.of[j] << 16;
    Counter* const counters = first_row_of(held) + first;
    constexpr uint32_t kInFlight = kWaves < 8 ? kWaves : 8;  // the compiler can't move loads over the stores
    static_assert(kWaves % kInFlight == 0);
#pragma unroll 1
    for (uint32_t w = 0; w < kWaves; w += kInFlight) {
      Quad in_row[kInFlight];
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i) in_row[i] = Counting<Counter>::load(counters + (w + i) * pitch());
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; ++i) {
        Counting<Counter>::store(counters + (w + i) * pitch(), starts);
        starts.add(in_row[i]);
      }
    }
  }

  // Codes become positions.
  __device__ void rank(Held& held) const {
    if (!gpu::kAtomicsInLaneOrder) return;
    if (ranks_by_atomics(held))
      rank_rows<false>(held);
    else
      rank_rows<true>(held);
  }

  // The numbers of the ranked tile to their positions.
  __device__ void put(const Held& held, uint16_t* staged) const {
    if (!gpu::kAtomicsInLaneOrder) return take_exactly(share_of(held), counters_of(held), staged);
    const uint32_t rows = held.rows;
#pragma unroll
    for (uint32_t first = 0; first < kMaxRows; first += kBatch) {
      if (first >= rows) break;
#pragma unroll
      for (uint32_t row = first; row < first + kBatch; ++row) put_number(staged, half_of(held.words, row), row);
    }
  }

  // Counts the tile that starts at `first_pair`, or with `staged` places it, by what never changes the order; nothing is
  // in the registers.
  __device__ void take_exactly(Held& tile, uint32_t first_pair, uint16_t* staged) const {
    begin(tile, first_pair);
    tile.set = 0;
    if (!staged) clear(counters_of(tile));
    take_exactly(share_of(tile), counters_of(tile), staged);
  }

 private:
  __device__ uint32_t pitch() const { return num_counters(args_.num_codes); }
  __device__ Counter* first_row_of(const Held& held) const { return sets_ + held.set * kWaves * pitch(); }
  __device__ Counter* counters_of(const Held& held) const { return first_row_of(held) + Wave::index_in_block() * pitch(); }
  __device__ uint32_t num_places() const { return places_of(num_pairs(), args_.num_codes); }
  __device__ void put_number(uint16_t* staged, uint32_t position, uint32_t row) const {
    if (position < num_places()) staged[position] = number_of(row);
  }
  __device__ uint16_t number_of(uint32_t row) const {
    return static_cast<uint16_t>((Wave::index_in_block() * rows_ + row) * kWave + Wave::lane());
  }
  // The code of this lane's pairs without one.
  __device__ static uint32_t none_of(const KernelArgs& args) { return args.num_codes + Wave::lane(); }

  __device__ static uint32_t half_of(const uint32_t (&words)[kMaxRows / 2], uint32_t row) {
    return row % 2 == 0 ? words[row / 2] & 0xffffu : words[row / 2] >> 16;
  }
  // Rows in ascending order.
  __device__ static void set_half(uint32_t (&words)[kMaxRows / 2], uint32_t row, uint32_t half) {
    words[row / 2] = row % 2 == 0 ? (words[row / 2] & 0xffff0000u) | half : (words[row / 2] & 0xffffu) | half << 16;
  }

  __device__ void clear(Counter* counters) const {
#pragma unroll 1
    for (uint32_t i = 4 * Wave::lane(); i < num_counters(args_.num_codes); i += 4 * kWave)
      Counting<Counter>::store(counters + i, {});
    Wave::sync();
  }
  __device__ void begin(Held& held, uint32_t first_pair) const {
    held.first_pair = first_pair + Wave::index_in_block() * rows_ * kWave;
    held.end_pair = min(held.first_pair + rows_ * kWave, end_);
    const uint32_t first_of_hardware = first_pair + threadIdx.x / gpu::kHardwareWave * gpu::kHardwareWave * rows_;
    held.rows = first_of_hardware < end_ ? min((end_ - first_of_hardware + kWave - 1) / kWave, rows_) : 0;
  }
  // Pairs without a code take positions behind all places.
  __device__ Counter* start_none(const Held& held) const {
    Counter* const counters = counters_of(held);
    counters[none_of(args_)] = static_cast<Counter>(num_places());
    Wave::sync();
    return counters;
  }

  // One item stands for the tile's others.
  __device__ static bool ranks_by_atomics(const Held& held) {
    return gpu::kAtomicsInLaneOrder && (held.rows == 0 || !is_crowded(half_of(held.words, 0)));
  }
  __device__ static void take(const Held& held, uint32_t first, Counter* counters, uint32_t (&positions)[kBatch]) {
    uint32_t codes[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) codes[i] = half_of(held.words, first + i);
    Takes::template take<Wave>(counters, codes, positions);
  }
  // Lanes with the code `hot` count themselves, from its position `next` on; the others take theirs.
  __device__ void take_beside(uint32_t hot, uint32_t& next, const Held& held, uint32_t first, Counter* counters,
                              uint32_t (&positions)[kBatch]) const {
    uint32_t codes[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t code = half_of(held.words, first + i);
      codes[i] = code == hot ? none_of(args_) : code;
    }
    Takes::template take<Wave>(counters, codes, positions);
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const bool is_hot = half_of(held.words, first + i) == hot;
      const auto peers = Wave::ballot(is_hot);
      if (is_hot) positions[i] = next + Wave::count(peers & Wave::lanes_below());
      next += Wave::count(peers);
    }
  }
  template <bool kHot>
  __device__ void rank_rows(Held& held) const {
    Counter* const counters = start_none(held);
    const uint32_t rows = held.rows;
    const uint32_t hot = kHot ? Wave::shuffle(half_of(held.words, 0), 0) : 0;
    uint32_t next = kHot ? counters[hot] : 0;
#pragma unroll
    for (uint32_t first = 0; first < kMaxRows; first += kBatch) {
      if (first >= rows) break;
      uint32_t positions[kBatch];
      if (kHot)
        take_beside(hot, next, held, first, counters, positions);
      else
        take(held, first, counters, positions);
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) set_half(held.words, first + i, positions[i]);
    }
  }

  // The held tile is placed, if kPlaces, and another takes its registers. No tile is larger than the one before.
  template <bool kPlaces>
  __device__ void replace(Held& held, uint16_t* staged, uint32_t first_pair) const {
    Held next;
    begin(next, first_pair);
    next.set = kPlaces ? held.set ^ 1 : held.set;
    Counter* const counters = counters_of(next);
    clear(counters);
    Counter* const old_counters = kPlaces ? start_none(held) : nullptr;
    const uint32_t rows = kPlaces ? held.rows : next.rows;
    const uint32_t none = none_of(args_);
    Faults faults;
#pragma unroll
    for (uint32_t first = 0; first < kMaxRows; first += kGroup) {
      if (first >= rows) break;
      uint32_t ids[kGroup];
      fetch(next, first, ids, faults);
#pragma unroll
      for (uint32_t row = first; kPlaces && row < first + kGroup; row += kBatch) {
        uint32_t positions[kBatch];
        take(held, row, old_counters, positions);
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) put_number(staged, positions[i], row + i);
      }
#pragma unroll
      for (uint32_t i = 0; i < kGroup; ++i) {
        const uint32_t code = min(ids[i], none);
        Counting<Counter>::take(counters, code);
        set_half(held.words, first + i, code);
      }
    }
    if (kPlain)
      report_strays(next, counters, (rows + kGroup - 1) / kGroup * kGroup);
    else
      plan.add_faults(faults);
    held.rows = next.rows;
    held.first_pair = next.first_pair;
    held.end_pair = next.end_pair;
    held.set = next.set;
  }

  // This lane's ids of a group of rows, or their codes. Behind the tile's end they are above all codes.
  __device__ void fetch(const Held& next, uint32_t first, uint32_t (&ids)[kGroup], Faults& faults) const {
    const uint32_t pair = next.first_pair + Wave::lane();
    const uint32_t rows = pair < next.end_pair ? (next.end_pair - pair + kWave - 1) / kWave : 0;  // of this lane
    if constexpr (kPlain) {
      const auto* const from = static_cast<const uint32_t*>(args_.source.ids) + pair;
#pragma unroll
      for (uint32_t i = 0; i < kGroup; ++i)
        ids[i] = gpu::load_streaming_if(first + i < rows, from + (first + i) * kWave, ~0u);
    } else {
      // By way of shared memory, so that it is a loop.
#pragma unroll 1
      for (uint32_t begin = 0; begin < kGroup; begin += kBatch) {
        int64_t wide[kBatch];
        read_wide_ids(args_.source, pair + (first + begin) * kWave, kWave, next.end_pair, wide);
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
          const uint32_t at = pair + (first + begin + i) * kWave;
          const bool counts = at < next.end_pair && (args_.source.num_segments <= 1 || in_counted_row(args_.source, at));
          room_[(begin + i) * kThreads] =
              static_cast<uint16_t>(counts ? resolve(args_, clip_id(wide[i]), at, faults) : kNoCode);
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < kGroup; ++i) ids[i] = room_[i * kThreads];
    }
  }

  // A pair's code. One without is reported.
  __device__ static uint32_t resolve(const KernelArgs& args, int32_t id, uint32_t pair, Faults& faults) {
    if (!kPlain && id == kAbsent) return kNoCode;
    const uint32_t code = code_of<kPlain>(args.source, id, pair, faults);
    if (code == kNoCode && args.out.pair_slots) args.out.pair_slots[pair] = -1;
    return code;
  }

  // Ids that are no experts, if the wave has any: of so many rows its lanes have counted more pairs without a code than
  // there are behind their last pairs.
  __device__ void report_strays(const Held& next, const Counter* counters, uint32_t rows) const {
    Wave::sync();
    const uint32_t first = next.first_pair + Wave::lane();
    const uint32_t own = first < next.end_pair ? (next.end_pair - first + kWave - 1) / kWave : 0;
    if (Wave::ballot(counters[none_of(args_)] != rows - own) != 0) report_all(args_, plan.facts, first, next.end_pair);
  }
  __device__ __noinline__ static void report_all(const KernelArgs& args, BlockFacts* facts, uint32_t pair, uint32_t end) {
    Faults faults;
#pragma unroll 1
    for (; pair < end; pair += kWave) resolve(args, load_id<kPlain>(args.source, pair), pair, faults);
    add_faults(facts, faults);
  }

  // A wave's part of a tile whose ids are read again.
  struct Share {
    const KernelArgs& args;
    uint32_t rows;
    uint32_t first_pair;
    uint32_t end_pair;
    uint32_t number;  // of this lane's first pair in the tile
  };
  __device__ Share share_of(const Held& tile) const {
    return {args_, tile.rows, tile.first_pair, tile.end_pair, number_of(0)};
  }

  // The wave's pairs move the counters on and, if there is `staged`, go where those were. The lanes of a code find each
  // other.
  __device__ __noinline__ static void take_exactly(const Share share, Counter* counters, uint16_t* staged) {
    Faults reported_before;
#pragma unroll 1
    for (uint32_t row = 0; row < share.rows; ++row) {
      const uint32_t pair = share.first_pair + row * kWave + Wave::lane();
      uint32_t code = kNoCode;
      if (pair < share.end_pair) code = resolve(share.args, load_id<kPlain>(share.args.source, pair), pair, reported_before);
      const auto peers = Wave::template match_by_ballots<kCodeBits>(code);
      const uint32_t below = Wave::count(peers & Wave::lanes_below());
      const uint32_t before = code == kNoCode ? 0 : counters[code];
      Wave::sync();
      if (code != kNoCode && below == 0) counters[code] = static_cast<Counter>(before + Wave::count(peers));
      if (code != kNoCode && staged) staged[before + below] = static_cast<uint16_t>(share.number + row * kWave);
      Wave::sync();
    }
  }

  const KernelArgs& args_;
  Counter* sets_;   // [2][kWaves][pitch()]
  uint16_t* room_;  // this thread's of [kGroup][kThreads], unless kPlain
  uint32_t rows_;
  uint32_t end_;  // of the block's pairs
};

}  // namespace mixlane::align_gpu
