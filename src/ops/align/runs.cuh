// Writing a sorted tile's runs to their slots: the second half of multi_phase_many.cuh.
//
// A run, a code's pairs of the tile, is consecutive in the tile and in the output. It is cut into pieces of aligned lines of
// the output, which the block's waves take in turn: all blocks go through the codes in step, so that where their runs meet
// in a line the second-level cache puts it together.
#pragma once

#include <type_traits>

#include "ops/align/outputs.cuh"

namespace mixlane::align_gpu {

template <class Plan>
class RunWriter {
 public:
  using Wave = gpu::Wave<gpu::kHardwareWave>;
  static constexpr uint32_t kLine = gpu::kHardwareWave;  // slots, a lane each
  static constexpr uint32_t kPieceLines = 16;
  static constexpr uint32_t kWaves = Plan::kThreads / kLine;

  __host__ __device__ static int64_t shared_bytes(uint32_t stride) { return (int64_t{stride} + 4) * 4; }

  // `pieces`: shared_bytes() of shared memory.
  __device__ RunWriter(const KernelArgs& args, const Plan& plan, uint32_t* pieces)
      : args_(args), plan_(plan), pieces_(pieces) {}

  // Of the next tile: runs[code] = first position | pairs << 16; `slots` of the runs of this thread's codes. Complete after
  // the caller's next __syncthreads(); contains one, and needs one before.
  __device__ void begin(const uint32_t* runs, const Quad& slots) const {
    const uint32_t first = threadIdx.x * 4;
    Quad own;
    if (first < plan_.stride) {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (first + j >= args_.num_codes) continue;
        const uint32_t run = runs[first + j];
        plan_.shift[first + j] = slots.of[j] - (run & 0xffffu);
        if (run >> 16 == 0) continue;
        const uint32_t lines = (slots.of[j] + (run >> 16) - 1) / kLine - slots.of[j] / kLine + 1;
        own.of[j] = (lines + kPieceLines - 1) / kPieceLines;
      }
    }
    const Quad below = starts_of(plan_.sum_below(own.sum()), own);
    if (first >= plan_.stride) return;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) pieces_[first + j] = below.of[j];
    if (first + 4 == plan_.stride) pieces_[plan_.stride] = below.of[3] + own.of[3];
  }

  // This wave's share of the tile that starts at `first_pair`. False if two of its pairs have changed places.
  __device__ bool write(const uint16_t* staged, const uint32_t* runs, uint32_t first_pair) const {
    const uint32_t wave = Wave::index_in_block();
    const uint32_t num_pieces = pieces_[plan_.stride];
    bool in_order = true;
#pragma unroll 1
    for (uint32_t base = wave; base < num_pieces; base += kWaves * kLine) {
      // A lane finds one of the wave's next pieces.
      const Piece own = find(min(base + Wave::lane() * kWaves, num_pieces - 1), runs);
#pragma unroll 1
      for (uint32_t lane = 0; lane < kLine && base + lane * kWaves < num_pieces; ++lane) {
        const auto of_lane = [&](uint32_t value) { return Wave::shuffle(value, static_cast<int>(lane)); };
        const Piece piece{of_lane(own.shift), of_lane(own.begin), of_lane(own.end), of_lane(own.run_end)};
        in_order &= write_piece(staged, piece, first_pair);
      }
    }
    return in_order;
  }

 private:
  struct Piece {
    uint32_t shift;  // slot minus position
    uint32_t begin;  // slots
    uint32_t end;
    uint32_t run_end;
  };

  __device__ Piece find(uint32_t index, const uint32_t* runs) const {
    const uint32_t indices[1] = {index};
    uint32_t codes[1];
    find_codes(pieces_, args_.num_codes, indices, codes);
    const uint32_t run = runs[codes[0]];
    Piece piece;
    piece.shift = plan_.shift[codes[0]];
    const uint32_t begin = piece.shift + (run & 0xffffu);
    piece.run_end = begin + (run >> 16);
    const uint32_t line = (begin / kLine + (index - pieces_[codes[0]]) * kPieceLines) * kLine;
    piece.begin = max(line, begin);
    piece.end = min(line + kPieceLines * kLine, piece.run_end);
    return piece;
  }

  __device__ bool write_piece(const uint16_t* staged, const Piece& piece, uint32_t first_pair) const {
    const uint32_t first_line = piece.begin / kLine;
    const uint32_t last_line = (piece.end - 1) / kLine;
    const uint32_t slot = first_line * kLine + Wave::lane();
    // The line may begin before the tile.
    const uint16_t* from = staged + static_cast<int32_t>(slot - piece.shift);
    int32_t* to = args_.out.sorted_pairs + slot;
    int32_t least_step = write_edges(from, to, slot, (last_line - first_line) * kLine, piece, first_pair);
    from += kLine;
    to += kLine;
    uint32_t lines = last_line - first_line;
    if (lines > 0) --lines;
    const auto write = [&]<uint32_t kLines>(std::integral_constant<uint32_t, kLines>) {
      if ((lines & kLines) == 0) return;
      least_step = min(least_step, write_lines<kLines>(from, to, first_pair));
      from += kLines * kLine;
      to += kLines * kLine;
    };
    write(std::integral_constant<uint32_t, 8>());
    write(std::integral_constant<uint32_t, 4>());
    write(std::integral_constant<uint32_t, 2>());
    write(std::integral_constant<uint32_t, 1>());
    if (args_.out.has_extras || args_.out.pair_slots)
      write_rest(args_, staged, piece.shift, piece.begin, piece.end, first_pair);
    return least_step > 0;
  }

  // The piece's first line and its last one, `width` slots on, as far as they are its own. Returns the smallest step from a
  // number to the next one of the run.
  __device__ int32_t write_edges(const uint16_t* from, int32_t* to, uint32_t slot, uint32_t width, const Piece& piece,
                                 uint32_t first_pair) const {
    const bool in_first = slot >= piece.begin && slot < piece.end;
    const bool in_last = width != 0 && slot + width < piece.end;
    const uint32_t first = in_first ? from[0] : 0;
    const uint32_t last = in_last ? from[width] : 0;
    const uint32_t after_first = in_first && slot + 1 != piece.run_end ? from[1] : first + 1;
    const uint32_t after_last = in_last && slot + width + 1 != piece.run_end ? from[width + 1] : last + 1;
    // What others complete stays in the second-level cache until then.
    if (in_first) to[0] = static_cast<int32_t>(first_pair + first);
    if (in_last) to[width] = static_cast<int32_t>(first_pair + last);
    return min(static_cast<int32_t>(after_first - first), static_cast<int32_t>(after_last - last));
  }

  // Lines in the middle of a run.
  template <uint32_t kLines>
  __device__ static int32_t write_lines(const uint16_t* from, int32_t* to, uint32_t first_pair) {
    uint32_t numbers[kLines];
    uint32_t next[kLines];
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i) {
      numbers[i] = from[i * kLine];
      next[i] = from[i * kLine + 1];
    }
    int32_t least_step = 1;
#pragma unroll
    for (uint32_t i = 0; i < kLines; ++i) {
      gpu::store_streaming(to + i * kLine, static_cast<int32_t>(first_pair + numbers[i]));
      least_step = min(least_step, static_cast<int32_t>(next[i] - numbers[i]));
    }
    return least_step;
  }

  __device__ __noinline__ static void write_rest(const KernelArgs& args, const uint16_t* staged, uint32_t shift,
                                                 uint32_t begin, uint32_t end, uint32_t first_pair) {
#pragma unroll 1
    for (uint32_t slot = begin + Wave::lane(); slot < end; slot += kLine) {
      const uint32_t pair = first_pair + staged[slot - shift];
      if (args.out.pair_slots) args.out.pair_slots[pair] = static_cast<int32_t>(slot);
      if (args.out.has_extras) write_slot_extras(args, slot, pair);
    }
  }

  const KernelArgs& args_;
  Plan plan_;
  uint32_t* pieces_;  // [stride + 1]: pieces of the codes before
};

}  // namespace mixlane::align_gpu
