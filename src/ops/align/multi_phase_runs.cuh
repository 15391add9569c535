// align.multi_phase for many pairs and up to 256 codes: the phases of multi_phase.cuh, with tiles of run_tile.cuh.
//
//   encode    every block reads the ids of its chunk once, counts their codes and leaves them in the workspace, a byte each:
//             small enough to stay in the second-level cache
//   barrier, columns, barrier
//   sort      every block sorts its chunk tile by tile, from the bytes
#pragma once

#include "ops/align/multi_phase.cuh"
#include "ops/align/run_tile.cuh"

namespace mixlane::align_gpu {

// The passes over codes are a small tile's.
template <class Runs>
using PlanTile = Tile<Runs::kThreads, 4, Runs::kWave>;

template <class Runs>
int64_t runs_shared_bytes(uint32_t num_codes) {
  return Runs::kSharedBytes + PlanTile<Runs>::shared_bytes(num_codes);
}

inline constexpr uint32_t kStepRuns = 8;  // that a wave encodes at once: so many loads in flight

// The launch's global memory: per block a byte for each pair of its chunk, four words of gap bits for each run, and the
// matrix of counts behind them.
template <class Runs>
struct RunSpace {
  uint4* packed;   // of this block: groups of a wave's runs, see RunTile::packed_at
  uint4* gaps;     // of this block: per run
  uint32_t* rest;  // the matrix

  __host__ __device__ static uint32_t share(uint32_t num_pairs, uint32_t num_blocks) {
    constexpr uint32_t kUnit = kStepRuns * Runs::kRun;
    return (num_pairs / num_blocks / kUnit + 1) * kUnit;
  }
  __host__ __device__ static uint32_t block_groups(uint32_t num_pairs, uint32_t num_blocks) {
    return (share(num_pairs, num_blocks) + Runs::kGroupPairs - 1) / Runs::kGroupPairs;
  }
  // A group's runs take a byte per pair, and 16 bytes of gaps each.
  static constexpr uint32_t kGroupBytes = Runs::kGroupPairs + Runs::kWave * 16;

  // Enough for up to so many blocks: each may leave most of a group unused.
  __host__ static int64_t words(uint32_t num_pairs, uint32_t num_codes, uint32_t num_blocks) {
    const int64_t num_groups = num_pairs / Runs::kGroupPairs + int64_t{2} * num_blocks;
    return num_groups * (kGroupBytes / 4) + Matrix::words(num_codes, num_blocks);
  }
  __device__ explicit RunSpace(const KernelArgs& args) {
    const uint32_t groups = block_groups(args.source.num_pairs, gridDim.x);
    auto* const memory = reinterpret_cast<std::byte*>(args.workspace);
    std::byte* const own = memory + size_t{blockIdx.x} * groups * kGroupBytes;
    packed = reinterpret_cast<uint4*>(own);
    gaps = packed + groups * (Runs::kGroupPairs / 16);
    rest = reinterpret_cast<uint32_t*>(memory + size_t{gridDim.x} * groups * kGroupBytes);
  }
};

// Reads a chunk's ids, kStep runs per wave and step: a lane has four consecutive pairs of each.
template <class Runs, bool kPlain>
class Encoder {
 public:
  using Wave = typename Runs::Wave;
  static constexpr uint32_t kStep = kStepRuns;

  __device__ Encoder(const KernelArgs& args, BlockFacts* facts, const Chunk& chunk, const RunSpace<Runs>& space)
      : args_(args),
        facts_(facts),
        chunk_(chunk),
        space_(space),
        num_runs_((chunk.end - chunk.begin + Runs::kRun - 1) / Runs::kRun),
        marks_gaps_(args.num_codes == Runs::kCodes),
        aligned_(kPlain && reinterpret_cast<uintptr_t>(args.source.ids) % 16 == 0) {}

  // The block's pairs per code, a column per lane: no two lanes of a wave meet, in a counter or in a bank.
  __device__ static uint32_t* counters() { return reinterpret_cast<uint32_t*>(Runs::shared()); }
  __device__ static void clear() {
    for (uint32_t i = threadIdx.x; i < Runs::kCodes * Runs::kWave; i += Runs::kThreads) counters()[i] = 0;
  }
  __device__ static uint32_t total(uint32_t code) {
    uint32_t sum = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < Runs::kWave; ++i) sum += counters()[code * Runs::kWave + (threadIdx.x + i) % Runs::kWave];
    return sum;
  }

  // Every wave takes as many steps: the hardware's may be several.
  __device__ void run() const {
    Ids ids{};
    uint32_t first = Runs::group() * kStep;
    load(first, ids);
#pragma unroll 1
    for (uint32_t base = 0; base < num_runs_; base += Runs::kGroups * kStep) {
      const Ids loaded = ids;
      const uint32_t current = first;
      first += Runs::kGroups * kStep;
      load(first, ids);
      if (hardware_first(current) < num_runs_) encode(current, loaded);
    }
  }

 private:
  struct Ids {
    int4 of[kStep];
  };
  struct Codes {
    uint32_t words[kStep];  // of each run four
    uint32_t gaps = 0;      // bit 4 * i + j: pair j of run i has none
  };

  __device__ uint32_t pair_of(uint32_t run) const { return chunk_.begin + run * Runs::kRun + 4 * Runs::lane(); }

  // Of the waves that are part of one of the hardware's: they go together.
  __device__ static uint32_t hardware_first(uint32_t first_run) {
    constexpr uint32_t kParts = gpu::kHardwareWave / Runs::kWave;
    return first_run - Runs::group() % kParts * kStep;
  }

  __device__ void load(uint32_t first_run, Ids& ids) const {
    if (first_run >= num_runs_) {
      // Another part of the hardware's wave may have one left: this one goes along, with no pairs.
      if constexpr (gpu::kHardwareWave > Runs::kWave)
        for (int4& four : ids.of) four = make_int4(kAbsent, kAbsent, kAbsent, kAbsent);
      return;
    }
    if (aligned_ && chunk_.begin + (first_run + kStep) * Runs::kRun <= chunk_.end) {
      const auto* from = static_cast<const int32_t*>(args_.source.ids) + pair_of(first_run);
#pragma unroll
      for (uint32_t i = 0; i < kStep; ++i) {
        const gpu::Packet four = gpu::load_streaming_packet(from + i * Runs::kRun);
        ids.of[i] = make_int4(four.words[0], four.words[1], four.words[2], four.words[3]);
      }
      return;
    }
#pragma unroll
    for (uint32_t i = 0; i < kStep; ++i) ids.of[i] = load_four(args_.source, pair_of(first_run + i), chunk_.end);
  }
  __device__ __noinline__ static int4 load_four(const PairSource& source, uint32_t pair, uint32_t end) {
    const auto load_one = [&](uint32_t at) { return at < end ? load_id<kPlain>(source, at) : kAbsent; };
    return {load_one(pair), load_one(pair + 1), load_one(pair + 2), load_one(pair + 3)};
  }

  __device__ static uint32_t* own_counters() { return counters() + Runs::lane(); }  // by code * kWave

  // Four codes in a word, and their gaps.
  __device__ __noinline__ static uint2 encode_any(const KernelArgs& args, BlockFacts* facts, uint32_t end, int4 ids,
                                                  uint32_t pair) {
    uint2 word_and_gaps = make_uint2(0, 0);
#pragma unroll 1
    for (uint32_t j = 0; j < 4; ++j) {
      const bool absent = pair + j >= end || (!kPlain && ids.x == kAbsent);
      Faults faults;
      const uint32_t code = absent ? kNoCode : code_of<kPlain>(args.source, ids.x, pair + j, faults);
      if (code != kNoCode) {
        atomicAdd(own_counters() + code * Runs::kWave, 1u);
        word_and_gaps.x |= code << (8 * j);
      } else {
        word_and_gaps.x |= kGapByte << (8 * j);
        word_and_gaps.y |= 1u << j;
        if (!absent && args.out.pair_slots) args.out.pair_slots[pair + j] = -1;
      }
      add_faults(facts, faults);
      ids = {ids.y, ids.z, ids.w, 0};
    }
    return word_and_gaps;
  }

  __device__ void encode(uint32_t first_run, const Ids& ids) const {
    Codes codes;
    // What nearly every pair is: an expert of this call.
    uint32_t largest = 0;
#pragma unroll
    for (const int4& four : ids.of)
      largest = max(max(max(largest, static_cast<uint32_t>(four.x)), max(static_cast<uint32_t>(four.y), four.z)),
                    static_cast<uint32_t>(four.w));
    if (kPlain && largest < args_.source.num_experts)
      encode_usual(ids, codes);
    else
#pragma unroll
      for (uint32_t i = 0; i < kStep; ++i) {
        const uint2 word_and_gaps = encode_any(args_, facts_, chunk_.end, ids.of[i], pair_of(first_run + i));
        codes.words[i] = word_and_gaps.x;
        codes.gaps |= word_and_gaps.y << (4 * i);
      }
    store(first_run, codes.words);
    // Behind the chunk nothing is missing.
    if (first_run + kStep > num_runs_) codes.gaps &= first_run < num_runs_ ? (1u << 4 * (num_runs_ - first_run)) - 1 : 0;
    const auto has_gaps = gpu::Wave<gpu::kHardwareWave>::ballot(codes.gaps != 0);
    if (has_gaps != 0) facts_->has_none = 1;
    if (marks_gaps_) mark_gaps(first_run, codes.gaps, has_gaps != 0);
  }

  __device__ void encode_usual(const Ids& ids, Codes& codes) const {
    const uint32_t first_code = args_.source.bucket ? 1 : 0;
    uint32_t* const of_ids = own_counters() + first_code * Runs::kWave;
#pragma unroll
    for (uint32_t i = 0; i < kStep; ++i) {
      const int4& four = ids.of[i];
      codes.words[i] = __byte_perm(__byte_perm(four.x, four.y, 0x0040), __byte_perm(four.z, four.w, 0x0040), 0x5410) +
                       first_code * 0x01010101u;
      atomicAdd(of_ids + four.x * Runs::kWave, 1u);
      atomicAdd(of_ids + four.y * Runs::kWave, 1u);
      atomicAdd(of_ids + four.z * Runs::kWave, 1u);
      atomicAdd(of_ids + four.w * Runs::kWave, 1u);
    }
  }

  __device__ void store(uint32_t first_run, uint32_t (&words)[kStep]) const {
#pragma unroll
    for (uint32_t quad = 0; quad < kStep; quad += 4) {
      transpose(words + quad);
      const uint32_t run = first_run + quad + Runs::lane() % 4;
      if (run < num_runs_)
        space_.packed[run / Runs::kWave * (Runs::kGroupPairs / 16) + Runs::packed_at(run % Runs::kWave, Runs::lane() / 4)] =
            make_uint4(words[quad], words[quad + 1], words[quad + 2], words[quad + 3]);
    }
  }

  // `any`: in a lane of the hardware's wave.
  __device__ void mark_gaps(uint32_t first_run, uint32_t gaps, bool any) const {
    uint4 marks = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (uint32_t i = 0; any && i < kStep; ++i, gaps >>= 4) {
      const uint4 of_run = make_uint4(Wave::ballot((gaps & 1) != 0), Wave::ballot((gaps & 2) != 0),
                                      Wave::ballot((gaps & 4) != 0), Wave::ballot((gaps & 8) != 0));
      if (i == Runs::lane()) marks = of_run;
    }
    if (Runs::lane() < kStep && first_run + Runs::lane() < num_runs_) space_.gaps[first_run + Runs::lane()] = marks;
  }

  // Of four neighbouring lanes: lane i's word j becomes lane j's word i.
  __device__ static void transpose(uint32_t* words) {
#pragma unroll
    for (uint32_t bit = 1; bit <= 2; bit *= 2) {
      const bool upper = (Runs::lane() & bit) != 0;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        if ((i & bit) != 0) continue;
        const uint32_t received = Wave::shuffle(upper ? words[i] : words[i | bit], static_cast<int>(Runs::lane() ^ bit));
        words[i] = upper ? received : words[i];
        words[i | bit] = upper ? words[i | bit] : received;
      }
    }
  }

  const KernelArgs& args_;
  BlockFacts* facts_;
  const Chunk& chunk_;
  const RunSpace<Runs>& space_;
  uint32_t num_runs_;
  bool marks_gaps_;
  bool aligned_;
};

// Codes of the chunk to the workspace, their counts to tile.totals.
template <class Runs, bool kPlain>
__device__ void encode_chunk(const KernelArgs& args, const PlanTile<Runs>& tile, const Chunk& chunk,
                             const RunSpace<Runs>& space) {
  const Encoder<Runs, kPlain> encoder(args, tile.facts, chunk, space);
  encoder.clear();
  tile.clear_facts();
  __syncthreads();
  encoder.run();
  __syncthreads();
  for (uint32_t code = threadIdx.x; code < tile.stride; code += Runs::kThreads)
    tile.totals[code] = code < args.num_codes ? encoder.total(code) : 0;
  __syncthreads();
}

template <class Runs>
struct RunCodes {
  uint32_t codes[Runs::kWords];
  uint32_t gaps[4] = {};
  bool given = false;

  template <bool kGaps>
  __device__ void load(const RunSpace<Runs>& space, uint32_t tile_index, uint32_t num_runs) {
    const uint32_t group = tile_index * Runs::kGroups + Runs::group();
    const uint32_t run = group * Runs::kWave + Runs::lane();
    given = run < num_runs;
    if (!given) return;
    Runs::load_run(space.packed + group * (Runs::kGroupPairs / 16), codes);
    if constexpr (kGaps) {
      const uint4 marks = space.gaps[run];
      gaps[0] = marks.x;
      gaps[1] = marks.y;
      gaps[2] = marks.z;
      gaps[3] = marks.w;
    }
  }
};

// Sorts and writes the chunk tile by tile; `next_slots` of the tile say where.
template <class Runs, bool kGaps>
__device__ void sort_runs(const KernelArgs& args, const Chunk& chunk, const RunSpace<Runs>& space) {
  const uint32_t num_runs = (chunk.end - chunk.begin + Runs::kRun - 1) / Runs::kRun;
  const auto misaligned = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(args.out.sorted_pairs) / 4 % 4);
  RunCodes<Runs> own;
  own.template load<kGaps>(space, 0, num_runs);
#pragma unroll 1
  for (uint32_t index = 0; index * Runs::kThreads < num_runs; ++index) {
    typename Runs::Rows rows;
    Runs::clear();
    if (own.given) Runs::template count<kGaps>(own.codes, own.gaps);
    Runs::Wave::sync();
    Runs::sum(rows);
    __syncthreads();

    uint32_t starts[Runs::kLanePairs];
    Runs::plan(index, misaligned, starts);
    Runs::spread(rows, starts);
    if (own.given) Runs::template place<kGaps>(own.codes, own.gaps);
    Runs::Wave::sync();
    own.template load<kGaps>(space, index + 1, num_runs);
    __syncthreads();

    Runs::write(args, chunk.begin + index * Runs::kPairs);
  }
}

// `plain` as for the launchers. One kernel for both: its larger part is the same.
template <class Runs>
__global__ void __launch_bounds__(Runs::kThreads)
    align_multi_phase_runs(const MIXLANE_GRID_CONSTANT KernelArgs args, bool plain) {
  using Plan = PlanTile<Runs>;
  const Plan tile(Runs::shared() + Runs::kSharedBytes, args.num_codes);
  const RunSpace<Runs> space(args);
  const uint32_t num_counted = count_pairs(args.source);
  const Chunk chunk(num_counted, RunSpace<Runs>::share(num_counted, gridDim.x));
  const Matrix matrix(space.rest, args.num_codes, gridDim.x);

  if (plain)
    encode_chunk<Runs, true>(args, tile, chunk, space);
  else
    encode_chunk<Runs, false>(args, tile, chunk, space);
  publish_counts(args, tile, matrix);
  gpu::grid_barrier(args.barrier);
  sum_columns<Plan>(matrix, args.num_codes);
  gpu::grid_barrier(args.barrier);
  const Quad slots = plan_block(args, tile, matrix);
  if (threadIdx.x < Runs::kCodes / 4)
    *reinterpret_cast<uint4*>(Runs::next_slots(0) + threadIdx.x * 4) =
        make_uint4(slots.of[0], slots.of[1], slots.of[2], slots.of[3]);
  __syncthreads();

  write_places(args, tile, matrix);
  if (args.num_codes == Runs::kCodes && tile.facts->has_none)
    sort_runs<Runs, true>(args, chunk, space);
  else
    sort_runs<Runs, false>(args, chunk, space);
}

}  // namespace mixlane::align_gpu
