// The stable sort of a large tile of pairs inside a block, by counters that no two threads share.
//
// Every thread owns a run of consecutive pairs and a counter per code. Threads form groups of a wave each; the counters of
// a group lie in rows with a column per lane, so that a lane only ever touches its own bank of shared memory:
//   count     bytes, four codes per word: row code / 4, column lane, byte code % 4
//   sum       pairs per code of the group, a lane for every few rows; it keeps the rows in registers
//   scan      the counters become positions in the sorted tile, 16 bits, two codes per word: start of the code + pairs of
//             earlier groups + pairs of earlier lanes
//   place     pair -> its position, in shared memory; the position moves on
//   write     the sorted tile as runs of consecutive slots, an equal share per wave
// Positions leave room between codes, so that a code's pairs are aligned in shared memory as they are in the output.
#pragma once

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// The byte that stands for "no code"; where it is a code as well, gaps are told apart by bits.
inline constexpr uint32_t kGapByte = 255;

// A tile's pairs of one code: staged entries and where they go.
struct CodeRun {
  uint32_t bounds;  // first position | end << 16
  uint32_t shift;   // slot minus position
};

template <int kGroups_, int kWave_>
struct RunTile {
  using Wave = gpu::Wave<kWave_>;
  static constexpr uint32_t kGroups = kGroups_;
  static constexpr uint32_t kWave = kWave_;
  static constexpr uint32_t kThreads = kGroups * kWave;
  static constexpr uint32_t kCodes = 256;
  // Pairs of a thread, so that a wave's packed load of four pairs per lane is one run.
  static constexpr uint32_t kRun = 4 * kWave;
  static constexpr uint32_t kGroupPairs = kWave * kRun;
  static constexpr uint32_t kPairs = kGroups * kGroupPairs;
  static_assert(kWave <= 32 && kRun < 256 && kPairs + kCodes * 6 < 65536, "counts of a run take 8 bits, positions 16");

  static constexpr uint32_t kWords = kRun / 4;               // of a run, four codes each
  static constexpr uint32_t kChunks = kWave / 4;             // 16-byte parts of a row, and of a run
  static constexpr uint32_t kLaneRows = kCodes / 4 / kWave;  // rows of bytes that a lane sums
  static constexpr uint32_t kLanePairs = 2 * kLaneRows;      // codes that it sums, two per word
  static constexpr uint32_t kGroupBytes = kCodes * kWave * 2;
  static constexpr uint32_t kLogWave = kWave == 32 ? 5 : 4;
  static_assert(kWave == 32 || kWave == 16);
  static_assert(kThreads * 4 >= kCodes, "a thread plans four codes");

  // The block's shared memory.
  static constexpr uint32_t kStagedAt = kGroups * kGroupBytes;
  // Behind each code's pairs lies what aligns the next one's as its slots are.
  static constexpr uint32_t kTotalsAt = kStagedAt + (kPairs + kCodes * 6) * 2;
  static constexpr uint32_t kRunsAt = kTotalsAt + kGroups * kCodes * 2;
  static constexpr uint32_t kNextAt = kRunsAt + kCodes * sizeof(CodeRun);
  static constexpr uint32_t kSharedBytes = kNextAt + 2 * kCodes * 4;

  // All of it begins with the block's dynamic shared memory: named here, so that the compiler knows every access for what it
  // is.
  __device__ static std::byte* shared() {
    extern __shared__ __align__(16) std::byte run_tile_memory[];
    return run_tile_memory;
  }
  // [kCodes]: where the next pair of each code goes, for the tile `index`.
  __device__ static uint32_t* next_slots(uint32_t index) {
    return reinterpret_cast<uint32_t*>(shared() + kNextAt) + index % 2 * kCodes;
  }
  __device__ static CodeRun* runs() { return reinterpret_cast<CodeRun*>(shared() + kRunsAt); }  // [kCodes]
  // The entry of a position. Lanes that hold one code place their pairs a run apart: in other banks, this way; four that
  // begin at a multiple of four stay together.
  __device__ static uint16_t* staged(uint32_t position) {
    return reinterpret_cast<uint16_t*>(shared() +
                                       static_cast<uint32_t>(kStagedAt + (position * 2 ^ (position >> 4 & 0x78u))));
  }
  __device__ static uint32_t group() { return Wave::index_in_block(); }
  __device__ static uint32_t lane() { return Wave::lane(); }

  // Where in a group's packed codes the 16-byte chunk of a run lies: a wave's loads of one chunk are consecutive.
  __device__ static uint32_t packed_at(uint32_t run, uint32_t chunk) { return chunk * kWave + run; }

  __device__ static void load_run(const uint4* packed, uint32_t (&codes)[kWords]) {
#pragma unroll
    for (uint32_t c = 0; c < kChunks; ++c) {
      const uint4 chunk = packed[packed_at(lane(), c)];
      codes[4 * c] = chunk.x;
      codes[4 * c + 1] = chunk.y;
      codes[4 * c + 2] = chunk.z;
      codes[4 * c + 3] = chunk.w;
    }
  }

  // -------------------------------------------------------------------------------------------------------------------
  // Places of counters. Two are worked out at once in the halves of a word: all but the group's upper bits fit.

  struct Places {
    uint32_t lane_bits;  // the group's lower bits and the column, in both halves
    uint32_t upper_bits;

    __device__ Places() {
      const uint32_t base = group() * kGroupBytes;
      lane_bits = ((base & 0xffffu) | lane() * 4) * 0x10001u;
      upper_bits = base & 0xffff0000u;
    }
    __device__ void split(uint32_t halves, uint32_t& first, uint32_t& second) const {
      first = __byte_perm(halves, upper_bits, 0x7610);
      second = __byte_perm(halves, upper_bits, 0x7632);
    }
    __device__ void bytes(uint32_t codes, uint32_t& first, uint32_t& second) const {
      constexpr uint32_t kRows = 0xfcu << kLogWave;
      split((codes << kLogWave & kRows * 0x10001u) | ((codes & 0x00030003u) | lane_bits), first, second);
    }
    __device__ void words(uint32_t codes, uint32_t& first, uint32_t& second) const {
      constexpr uint32_t kRows = 0xfeu << (kLogWave + 1);
      split((codes << (kLogWave + 1) & kRows * 0x10001u) | ((codes << 1 & 0x00020002u) | lane_bits), first, second);
    }
  };
  __device__ static uint32_t lower_codes(uint32_t word) { return __byte_perm(word, 0, 0x4140); }
  __device__ static uint32_t upper_codes(uint32_t word) { return __byte_perm(word, 0, 0x4342); }

  // The group's byte counters, by its wave.
  __device__ static void clear() {
    auto* packets = reinterpret_cast<uint4*>(shared() + group() * kGroupBytes);
#pragma unroll
    for (uint32_t i = 0; i < kCodes / 4 / 4; ++i) packets[i * kWave + lane()] = make_uint4(0, 0, 0, 0);
    Wave::sync();
  }

  // The words of a run, a few at a time in a loop: laid out at length, the code would wait for its instructions to arrive.
  // The words go round, so that they keep their registers. `gaps`: pair 4 * w + j has bit w of gaps[j]; take(word, number of
  // its first pair in the run, bits of its gaps).
  template <bool kGaps, class Take>
  __device__ static void for_words(uint32_t (&codes)[kWords], const uint32_t (&gaps)[4], Take take) {
    constexpr uint32_t kStep = 8;
    static_assert(kWords % kStep == 0);
    uint32_t of_step[4] = {gaps[0], gaps[1], gaps[2], gaps[3]};
#pragma unroll 1
    for (uint32_t first = 0; first < kWords; first += kStep) {
      uint32_t words[kStep];
#pragma unroll
      for (uint32_t i = 0; i < kStep; ++i) words[i] = codes[i];
#pragma unroll
      for (uint32_t i = 0; i < kStep; ++i) {
        uint32_t missing = 0;
#pragma unroll
        for (uint32_t j = 0; kGaps && j < 4; ++j) missing |= (of_step[j] >> i & 1) << j;
        take(words[i], 4 * (first + i), missing);
      }
#pragma unroll
      for (uint32_t i = 0; i < kWords; ++i) codes[i] = i + kStep < kWords ? codes[i + kStep] : words[i + kStep - kWords];
#pragma unroll
      for (uint32_t j = 0; kGaps && j < 4; ++j) of_step[j] >>= kStep;
    }
  }

  // Nothing is waited for: a lane's counters are its own, and adding returns nothing.
  template <bool kGaps>
  __device__ static void count(uint32_t (&codes)[kWords], const uint32_t (&gaps)[4]) {
    const Places places;
    // Half of the group's memory is free until the scan.
    const uint32_t nowhere = group() * kGroupBytes + kCodes * kWave + lane() * 4;
    for_words<kGaps>(codes, gaps, [&](uint32_t word, uint32_t, uint32_t missing) {
      uint32_t at[4];
      places.bytes(lower_codes(word), at[0], at[1]);
      places.bytes(upper_codes(word), at[2], at[3]);
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (kGaps && (missing >> j & 1) != 0) at[j] = nowhere;
        atomicAdd(reinterpret_cast<uint32_t*>(shared() + (at[j] & ~3u)), 1u << at[j] % 4 * 8);
      }
    });
  }

  // -------------------------------------------------------------------------------------------------------------------
  // Counters to positions

  // This lane's rows. Each lane begins with another chunk, so that they never meet in a bank.
  struct Rows {
    uint4 chunks[kLaneRows][kChunks];
    uint32_t low[kLanePairs];  // pairs of the lanes before the first chunk
  };
  __device__ static uint32_t chunk_of(uint32_t turn) { return (lane() + turn) % kChunks; }
  __device__ static bool is_wrapped(uint32_t turn) { return lane() % kChunks + turn >= kChunks; }

  // Loads the rows and leaves the group's pairs per code in totals.
  __device__ static void sum(Rows& rows) {
    const auto* packets = reinterpret_cast<const uint4*>(shared() + group() * kGroupBytes);
    uint32_t totals[kLanePairs];
#pragma unroll
    for (uint32_t r = 0; r < kLaneRows; ++r)
#pragma unroll
      for (uint32_t turn = 0; turn < kChunks; ++turn)
        rows.chunks[r][turn] = packets[(lane() * kLaneRows + r) * kChunks + chunk_of(turn)];
#pragma unroll
    for (uint32_t pair = 0; pair < kLanePairs; ++pair) {
      uint32_t total = 0;
      uint32_t low = 0;
#pragma unroll
      for (uint32_t turn = 0; turn < kChunks; ++turn) {
        const uint4& chunk = rows.chunks[pair / 2][turn];
        const auto codes = [&](uint32_t word) { return pair % 2 == 0 ? lower_codes(word) : upper_codes(word); };
        const uint32_t in_chunk = codes(chunk.x) + codes(chunk.y) + codes(chunk.z) + codes(chunk.w);
        total += in_chunk;
        if (is_wrapped(turn)) low += in_chunk;
      }
      rows.low[pair] = low;
      totals[pair] = total;
    }
    auto* to = reinterpret_cast<uint4*>(shared() + kTotalsAt + group() * kCodes * 2) + lane() * (kLanePairs / 4);
#pragma unroll
    for (uint32_t i = 0; i < kLanePairs / 4; ++i)
      to[i] = make_uint4(totals[4 * i], totals[4 * i + 1], totals[4 * i + 2], totals[4 * i + 3]);
  }

  // After a __syncthreads() that followed sum(): the position of the group's first pair of each of the lane's codes. The
  // first group notes each code's run, and where the next tile's goes, as well. `misaligned`: words of the output before its
  // first slot, as far as alignment goes.
  __device__ static void plan(uint32_t index, uint32_t misaligned, uint32_t (&starts)[kLanePairs]) {
    constexpr uint32_t kLaneCodes = 2 * kLanePairs;
    uint32_t totals[kLanePairs] = {};
    uint32_t before[kLanePairs] = {};
#pragma unroll
    for (uint32_t g = 0; g < kGroups; ++g) {
      const auto* from = reinterpret_cast<const uint4*>(shared() + kTotalsAt + g * kCodes * 2) + lane() * (kLanePairs / 4);
#pragma unroll
      for (uint32_t i = 0; i < kLanePairs / 4; ++i) {
        const uint4 packet = from[i];
        const uint32_t words[4] = {packet.x, packet.y, packet.z, packet.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          totals[4 * i + j] += words[j];
          if (g < group()) before[4 * i + j] += words[j];
        }
      }
    }
    const uint32_t* const slots = next_slots(index) + lane() * kLaneCodes;
    uint32_t own = 0;
    uint32_t first[kLaneCodes];  // relative to the lane's first
#pragma unroll
    for (uint32_t c = 0; c < kLaneCodes; ++c) {
      const uint32_t count = c % 2 == 0 ? totals[c / 2] & 0xffffu : totals[c / 2] >> 16;
      first[c] = own + (slots[c] + misaligned) % 4;
      own = (first[c] + count + 3) / 4 * 4;
    }
    const uint32_t base = Wave::inclusive_sum(own) - own;
#pragma unroll
    for (uint32_t pair = 0; pair < kLanePairs; ++pair)
      starts[pair] = (base + first[2 * pair] | (base + first[2 * pair + 1]) << 16) + before[pair];
    if (group() != 0) return;
    uint32_t* const next = next_slots(index + 1) + lane() * kLaneCodes;
    CodeRun* const run = runs() + lane() * kLaneCodes;
#pragma unroll
    for (uint32_t c = 0; c < kLaneCodes; ++c) {
      const uint32_t count = c % 2 == 0 ? totals[c / 2] & 0xffffu : totals[c / 2] >> 16;
      const uint32_t start = base + first[c];
      run[c] = {start | (start + count) << 16, slots[c] - start};
      next[c] = slots[c] + count;
    }
  }

  // The rows as positions.
  __device__ static void spread(const Rows& rows, const uint32_t (&starts)[kLanePairs]) {
    auto* const packets = reinterpret_cast<uint4*>(shared() + group() * kGroupBytes);
#pragma unroll
    for (uint32_t pair = 0; pair < kLanePairs; ++pair) {
      uint32_t position = starts[pair] + rows.low[pair];
#pragma unroll
      for (uint32_t turn = 0; turn < kChunks; ++turn) {
        if (turn != 0 && lane() % kChunks + turn == kChunks) position = starts[pair];
        const uint4& chunk = rows.chunks[pair / 2][turn];
        const auto codes = [&](uint32_t word) { return pair % 2 == 0 ? lower_codes(word) : upper_codes(word); };
        uint4 positions;
        positions.x = position;
        positions.y = positions.x + codes(chunk.x);
        positions.z = positions.y + codes(chunk.y);
        positions.w = positions.z + codes(chunk.z);
        position = positions.w + codes(chunk.w);
        packets[(lane() * kLanePairs + pair) * kChunks + chunk_of(turn)] = positions;
      }
    }
    Wave::sync();
  }

  // -------------------------------------------------------------------------------------------------------------------
  // Pairs to positions, and out

  template <bool kGaps>
  __device__ static void place(uint32_t (&codes)[kWords], const uint32_t (&gaps)[4]) {
    const Places places;
    const uint32_t first_pair = threadIdx.x * kRun;
    for_words<kGaps>(codes, gaps, [&](uint32_t word, uint32_t offset, uint32_t missing) {
      const uint32_t pair = first_pair + offset;
      uint32_t at[4];
      places.words(lower_codes(word), at[0], at[1]);
      places.words(upper_codes(word), at[2], at[3]);
      if (kGaps && missing != 0) {
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j)
          if ((missing >> j & 1) == 0) *staged((*next_position(at[j]))++) = static_cast<uint16_t>(pair + j);
      } else {
        place_two(at[0], at[1], pair);
        place_two(at[2], at[3], pair + 2);
      }
    });
  }

  // The sorted tile to its slots, after a __syncthreads() that followed place().
  __device__ static void write(const KernelArgs& args, uint32_t first_pair) {
    const Share share(args.num_codes);
    if (args.out.has_extras || args.out.pair_slots) {
      write_all(args, first_pair, share);
    } else {
      write_edges(args.out.sorted_pairs, first_pair, args.num_codes);
      write_packets(args.out.sorted_pairs, first_pair, share);
    }
  }

 private:
  __device__ static uint16_t* next_position(uint32_t at) { return reinterpret_cast<uint16_t*>(shared() + at); }

  // Both loads are on their way before either store.
  __device__ static void place_two(uint32_t at, uint32_t at_second, uint32_t pair) {
    const uint32_t to = *next_position(at);
    const uint32_t other = *next_position(at_second);
    const uint32_t to_second = at == at_second ? to + 1 : other;
    *next_position(at) = static_cast<uint16_t>(to + 1);
    *next_position(at_second) = static_cast<uint16_t>(to_second + 1);
    *staged(to) = static_cast<uint16_t>(pair);
    *staged(to_second) = static_cast<uint16_t>(pair + 1);
  }

  // A wave's equal part of the positions, so that no code is too long for one.
  struct Share {
    uint32_t begin;
    uint32_t end;
    uint32_t code = 0;  // the first one that has positions here, and behind the last one
    uint32_t end_code = 0;

    __device__ explicit Share(uint32_t num_codes) {
      const uint32_t num_staged = runs()[num_codes - 1].bounds >> 16;
      const uint32_t size = (num_staged / kGroups + 4) / 4 * 4;
      begin = min(group() * size, num_staged);
      end = min(begin + size, num_staged);
#pragma unroll
      for (uint32_t base = 0; base < kCodes; base += kWave) {
        const uint32_t bounds = runs()[base + lane()].bounds;
        code += Wave::count(Wave::ballot((bounds >> 16) <= begin));
        end_code += Wave::count(Wave::ballot((bounds & 0xffffu) < end));
      }
    }
    __device__ uint32_t first_of(const CodeRun& run) const { return max(run.bounds & 0xffffu, begin); }
    __device__ uint32_t end_of(const CodeRun& run) const { return min(run.bounds >> 16, end); }
  };

  __device__ static uint32_t round_up(uint32_t position) { return (position + 3) / 4 * 4; }

  // What fills no packet of four slots, at either end of each code: a lane per code.
  __device__ static void write_edges(int32_t* sorted_pairs, uint32_t first_pair, uint32_t num_codes) {
#pragma unroll 1
    for (uint32_t code = threadIdx.x; code < num_codes; code += kThreads) {
      const CodeRun run = runs()[code];
      const uint32_t first = run.bounds & 0xffffu;
      const uint32_t end = run.bounds >> 16;
      const uint32_t head_end = min(round_up(first), end);
      const uint32_t tail = max(end / 4 * 4, head_end);
      uint32_t pairs[6];
      // What is read behind the end, here and below, is thrown away; there is memory.
#pragma unroll
      for (uint32_t i = 0; i < 3; ++i) {
        pairs[i] = first_pair + *staged(first + i);
        pairs[3 + i] = first_pair + *staged(tail + i);
      }
#pragma unroll
      for (uint32_t i = 0; i < 3; ++i) {
        if (first + i < head_end) sorted_pairs[run.shift + first + i] = static_cast<int32_t>(pairs[i]);
        if (tail + i < end) sorted_pairs[run.shift + tail + i] = static_cast<int32_t>(pairs[3 + i]);
      }
    }
  }

  // Four codes at a time, a quarter of the wave for each; all of it for one after the other where they are long.
  __device__ static void write_packets(int32_t* sorted_pairs, uint32_t first_pair, const Share& share) {
    constexpr uint32_t kPart = kWave / 4;
    constexpr uint32_t kBatch = kPairs / kCodes / (4 * kPart) + 1;  // of an even tile most codes take one
    constexpr uint32_t kLong = 4 * kBatch * 4 * kPart;
#pragma unroll 1
    for (uint32_t code = share.code; code < share.end_code; code += 4) {
      const uint32_t last = min(code + 3, share.end_code - 1);
      if (share.end_of(runs()[last]) - share.first_of(runs()[code]) <= kLong) {
        const uint32_t own = code + lane() / kPart;
        if (own <= last) write_packets_of<kPart, kBatch>(sorted_pairs, first_pair, share, runs()[own], lane() % kPart);
      } else {
#pragma unroll 1
        for (uint32_t own = code; own <= last; ++own)
          write_packets_of<kWave, 4>(sorted_pairs, first_pair, share, runs()[own], lane());
      }
    }
  }

  // By kLanes lanes; everything is loaded, then everything is stored, without a branch.
  template <uint32_t kLanes, uint32_t kBatch>
  __device__ static void write_packets_of(int32_t* sorted_pairs, uint32_t first_pair, const Share& share, const CodeRun& run,
                                          uint32_t lane_of_run) {
    constexpr uint32_t kStep = kLanes * 4;
    const uint32_t end = share.end_of(run) / 4 * 4;
    uint32_t position = round_up(share.first_of(run)) + lane_of_run * 4;
    int32_t* to = sorted_pairs + (run.shift + position);
#pragma unroll 1
    for (; position < end; position += kBatch * kStep, to += kBatch * kStep) {
      uint2 entries[kBatch];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) entries[i] = *reinterpret_cast<const uint2*>(staged(position + i * kStep));
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        if (position + i * kStep < end)
          *reinterpret_cast<uint4*>(to + i * kStep) =
              make_uint4(first_pair + (entries[i].x & 0xffffu), first_pair + (entries[i].x >> 16),
                         first_pair + (entries[i].y & 0xffffu), first_pair + (entries[i].y >> 16));
    }
  }

  __device__ __noinline__ static void write_all(const KernelArgs& args, uint32_t first_pair, const Share& share) {
#pragma unroll 1
    for (uint32_t code = share.code; code < share.end_code; ++code) {
      const CodeRun run = runs()[code];
      const uint32_t end = share.end_of(run);
#pragma unroll 1
      for (uint32_t at = share.first_of(run) + lane(); at < end; at += kWave) {
        const uint32_t pair = first_pair + *staged(at);
        write_slot(args, run.shift + at, pair);
        if (args.out.pair_slots) args.out.pair_slots[pair] = static_cast<int32_t>(run.shift + at);
      }
    }
  }
};

}  // namespace mixlane::align_gpu
