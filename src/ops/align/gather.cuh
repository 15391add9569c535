// Writing the output from sorted tiles: the last phase of multi_phase_gather.cuh.
//
// A group's pairs, in slot order, are its runs in the sorted tiles, one after the other. The slots are dealt out in chunks,
// a wave each, and written window by window, a lane per slot, so that every aligned line is written whole. In shared memory
// a wave marks the slots of the window where a run begins, and notes the runs in order: a slot's run is found by counting
// the marks up to it, however short the runs are. The runs of the next window are on their way while this one is written.
#pragma once

#include "gpu/load_if.cuh"
#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

// A tile's run of one code.
struct RunPlace {
  uint32_t first;  // pairs of the code in the tiles before
  uint32_t shift;  // entry of a pair, counted over all tiles, minus its number among the code's pairs
};

// What the sorted tiles lie in: [max_tiles][kTilePairs] entries, the pair's number in its tile; runs [num_codes][max_tiles].
struct SortedTiles {
  const uint16_t* entries;
  const RunPlace* runs;
  uint32_t max_tiles;
  uint32_t num_tiles;
};

template <uint32_t kTilePairs>
class Gather {
 public:
  using Wave = gpu::Wave<gpu::kHardwareWave>;
  static constexpr uint32_t kLine = gpu::kHardwareWave;  // slots, a lane each
  static constexpr uint32_t kLines = 8;                  // of a window, all under way together
  static constexpr uint32_t kSlots = kLines * kLine;
  static constexpr uint32_t kMaxChunk = 4096;  // slots that a wave writes in one go

  // A wave's shared memory.
  struct alignas(16) Room {
    static constexpr uint32_t kWords = kSlots / 32;
    struct Word {
      uint32_t marks;   // of the slots where a run begins
      uint32_t before;  // runs that begin before the word, minus 1
    };
    struct Run {
      uint32_t shift;
      uint32_t first_pair;  // of its tile
    };
    uint32_t marks[kWords];
    Word words[kWords];
    Run runs[kSlots];
  };

  // `offsets` [num_codes + 1] and `totals` [num_codes] as in Tile.
  __device__ Gather(const KernelArgs& args, const SortedTiles& tiles, const uint32_t* offsets, const uint32_t* totals,
                    Room* rooms)
      : args_(args), tiles_(tiles), offsets_(offsets), totals_(totals), room_(rooms[Wave::index_in_block()]) {}

  // This wave's share of all slots.
  __device__ void run() {
    const uint32_t waves_of_block = blockDim.x / kLine;
    const uint32_t num_waves = gridDim.x * waves_of_block;
    const uint32_t end = offsets_[args_.num_codes];
    const uint32_t rounds = end / (num_waves * kMaxChunk) + 1;
    const uint32_t chunk = (end / (num_waves * rounds) / kSlots + 1) * kSlots;
#pragma unroll 1
    for (uint32_t begin = (blockIdx.x * waves_of_block + Wave::index_in_block()) * chunk; begin < end;
         begin += num_waves * chunk)
      write_chunk(begin, min(begin + chunk, end));
  }

 private:
  // Slots of one code, in one chunk.
  struct Piece {
    const RunPlace* runs;  // the code's
    uint32_t base;         // its first slot
    uint32_t end_pair;     // behind its last pair
    uint32_t begin;
    uint32_t end;
  };
  static constexpr uint32_t kNever = 0x7fffffff;  // behind any window

  __device__ void write_chunk(uint32_t begin, uint32_t end) {
    const uint32_t slots[1] = {begin};
    uint32_t codes[1];
    find_codes(offsets_, args_.num_codes, slots, codes);
    uint32_t slot = begin;
#pragma unroll 1
    for (uint32_t code = codes[0]; slot < end; ++code) {
      const uint32_t code_end = min(offsets_[code + 1], end);
      if (slot >= code_end) continue;
      const uint32_t base = offsets_[code];
      write_piece({tiles_.runs + size_t{code} * tiles_.max_tiles, base, base + totals_[code], slot, code_end});
      if (args_.out.block_experts) write_experts(code, slot, code_end);
      slot = code_end;
    }
  }

  // The entries of the blocks that begin in these slots.
  __device__ void write_experts(uint32_t code, uint32_t begin, uint32_t end) const {
    const uint32_t above = args_.by_block.divisor - 1;
    const uint32_t end_block = gpu::divide(end + above, args_.by_block);
    const int32_t expert = static_cast<int32_t>(code) - (args_.source.bucket ? 1 : 0);
#pragma unroll 1
    for (uint32_t block = gpu::divide(begin + above, args_.by_block) + Wave::lane(); block < end_block; block += kLine)
      args_.out.block_experts[block] = expert;
  }

  __device__ void write_piece(const Piece& piece) {
    if (piece.begin < piece.end_pair) fetch_runs(piece, find_tile(piece, piece.begin - piece.base));
    const uint32_t end_pair = min(piece.end_pair, piece.end);
#pragma unroll 1
    for (uint32_t window = piece.begin / kLine * kLine; window < piece.end; window += kSlots) {
      if (window < piece.end_pair) mark_runs(piece, window);
      if (window >= piece.begin && window + kSlots <= end_pair)
        write_window<true>(piece, window);
      else
        write_window<false>(piece, window);
      // Before the marks go.
      Wave::sync();
    }
  }

  // The tile whose run holds the code's pair of this number: the last one that begins at or before it.
  __device__ uint32_t find_tile(const Piece& piece, uint32_t number) const {
    uint32_t tile = 0;
#pragma unroll 1
    for (uint32_t size = tiles_.num_tiles; size > 1;) {
      // A lane looks at the first tile of each part.
      const uint32_t part = (size + kLine - 1) / kLine;
      const uint32_t at = Wave::lane() * part;
      const bool begun = at < size && piece.runs[tile + at].first <= number;
      const uint32_t parts = Wave::count(Wave::ballot(begun)) - 1;
      tile += parts * part;
      size = min(part, size - parts * part);
    }
    return tile;
  }

  // The runs of `tile` and those after it, a lane each.
  __device__ void fetch_runs(const Piece& piece, uint32_t tile) {
    tile_ = tile;
    own_ = tile + Wave::lane() < tiles_.num_tiles ? piece.runs[tile + Wave::lane()] : RunPlace{kNever, 0};
  }

  // Marks and notes the window's runs. The first fetched one begins at or before the window's first pair.
  __device__ void mark_runs(const Piece& piece, uint32_t window) {
    if (Wave::lane() < Room::kWords) room_.marks[Wave::lane()] = 0;
    Wave::sync();
    const auto start = static_cast<int32_t>(window - piece.base);  // below 0 where another code ends in the window
    uint32_t count = 0;
#pragma unroll 1
    for (;;) {
      // The last lane's run only tells where the one before it ends.
      const uint32_t lane = Wave::lane();
      const uint32_t next = Wave::shuffle(own_.first, static_cast<int>((lane + 1) % kLine));
      const uint32_t slot = static_cast<int32_t>(own_.first) > start ? own_.first - static_cast<uint32_t>(start) : 0;
      const bool is_inside = lane + 1 < kLine && own_.first != next && static_cast<int32_t>(next) > start && slot < kSlots;
      const auto inside = Wave::ballot(is_inside);
      if (is_inside) {
        atomicOr(room_.marks + slot / 32, 1u << slot % 32);
        room_.runs[count + Wave::count(inside & Wave::lanes_below())] = {own_.shift, (tile_ + lane) * kTilePairs};
      }
      count += Wave::count(inside);
      const auto end = start + static_cast<int32_t>(kSlots);
      const uint32_t begun = Wave::count(Wave::ballot(static_cast<int32_t>(own_.first) < end));
      fetch_runs(piece, tile_ + (begun == 0 ? 0 : begun - 1));
      if (begun < kLine) break;
    }
    Wave::sync();
    const uint32_t marks = Wave::lane() < Room::kWords ? room_.marks[Wave::lane()] : 0;
    const uint32_t own = __popc(marks);
    const uint32_t before = Wave::inclusive_sum(own) - own - 1;
    if (Wave::lane() < Room::kWords) room_.words[Wave::lane()] = {marks, before};
    Wave::sync();
  }

  // kWhole: every lane has a pair in each line.
  template <bool kWhole>
  __device__ void write_window(const Piece& piece, uint32_t window) const {
    const uint32_t slot = window + Wave::lane();
    const auto is_inside = [&](uint32_t at) { return kWhole || (at >= piece.begin && at < piece.end); };
    uint32_t values[kLines];
    uint32_t first_pairs[kLines];
    const uint32_t up_to = ~0u >> (31 - Wave::lane() % 32);
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i) {
      const bool is_pair = kWhole || (is_inside(slot + i * kLine) && slot + i * kLine < piece.end_pair);
      const typename Room::Word word = room_.words[(i * kLine + Wave::lane()) / 32];
      const typename Room::Run run = room_.runs[is_pair ? word.before + __popc(word.marks & up_to) : 0];
      values[i] = is_pair ? run.shift + (slot + i * kLine - piece.base) : 0;
      first_pairs[i] = run.first_pair;
    }
    // No shared load waits among them.
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i) values[i] = gpu::load_half(tiles_.entries + values[i]);
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i) {
      const bool is_pair = kWhole || slot + i * kLine < piece.end_pair;
      values[i] = is_pair ? first_pairs[i] + values[i] : static_cast<uint32_t>(args_.out.pad_value);
      if (is_inside(slot + i * kLine))
        gpu::store_streaming(args_.out.sorted_pairs + slot + i * kLine, static_cast<int32_t>(values[i]));
    }
    if (!args_.out.has_extras && !args_.out.pair_slots) return;
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i)
      if (is_inside(slot + i * kLine))
        write_rest(args_, slot + i * kLine, static_cast<int32_t>(values[i]), kWhole || slot + i * kLine < piece.end_pair);
  }

  __device__ __noinline__ static void write_rest(const KernelArgs& args, uint32_t slot, int32_t pair, bool is_pair) {
    if (!is_pair) {
      if (args.out.has_extras) write_pad_extras(args, slot, slot + 1, 1);
      return;
    }
    if (args.out.pair_slots) args.out.pair_slots[pair] = static_cast<int32_t>(slot);
    if (args.out.has_extras) write_slot_extras(args, slot, static_cast<uint32_t>(pair));
  }

  const KernelArgs& args_;
  const SortedTiles& tiles_;
  const uint32_t* offsets_;
  const uint32_t* totals_;
  Room& room_;
  uint32_t tile_ = 0;        // of lane 0's run
  RunPlace own_{kNever, 0};  // of tile_ + lane
};

}  // namespace mixlane::align_gpu
