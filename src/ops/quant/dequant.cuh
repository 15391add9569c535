// The kernel of dequant.octets.
#pragma once

#include <type_traits>

#include "gpu/device.hpp"
#include "gpu/numeric.cuh"
#include "ops/quant/device_args.hpp"

namespace mixlane::quant_gpu {

// A wave takes a piece of a row, whose codes its lanes load eight bytes at a time (an octet of fp8, two of
// fp4). A run is what a lane stores in one piece, 16 bytes; lanes exchange codes so that neighbours store neighbouring runs.
inline constexpr int kDequantWaves = 8;  // of a block; they lie below each other, so that they share scales by column
inline constexpr int kDequantLanes = 32;

template <DType kType>
inline constexpr int kRunValues = kType == DType::f32 ? 4 : 8;

// Codes of a run.
template <bool kFp4, int kCount>
struct Codes {
  static constexpr int kBits = kCount * (kFp4 ? 4 : 8);
  using Word = std::conditional_t<kBits == 64, uint64_t, std::conditional_t<kBits == 32, uint32_t, uint16_t>>;
  Word word;

  __device__ float value(int i) const {
    if constexpr (kFp4)
      return e2m1_of_word(static_cast<uint32_t>(word), i);
    else
      return gpu::e4m3_to_f32(static_cast<uint32_t>(word >> (8 * i)) & 255u);
  }

  __device__ static Codes load(const std::byte* from, int64_t count, bool aligned) {
    if (count >= kCount && aligned) return {*reinterpret_cast<const Word*>(from)};
    Codes codes{};
#pragma unroll
    for (int b = 0; b < kBits / 8; ++b)
      if ((kFp4 ? 2 * b : b) < count) codes.word = static_cast<Word>(codes.word | static_cast<Word>(from[b]) << (8 * b));
    return codes;
  }

  // Run `at` * 32 + lane of the piece whose codes the lanes hold, eight bytes each.
  __device__ static Codes exchanged(uint2 held, int at) {
    using Wave = gpu::Wave<kDequantLanes>;
    constexpr int kShares = 64 / kBits;  // runs that a lane holds
    if constexpr (kShares == 1) {
      return {held.x | static_cast<uint64_t>(held.y) << 32};
    } else {
      const uint32_t lane = Wave::lane();
      const int source = at * (kDequantLanes / kShares) + static_cast<int>(lane / kShares);
      const uint32_t low = Wave::shuffle(held.x, source), high = Wave::shuffle(held.y, source);
      const uint32_t shift = lane % kShares * kBits;
      return {static_cast<Word>((shift < 32 ? low : high) >> shift % 32)};
    }
  }

 private:
  // Nibble i: its three bits as the lowest of an f32's exponent and the first of its mantissa, which may be subnormal,
  // times 2^126: exact. Taken out of the word by one shift and one mask.
  __device__ static float e2m1_of_word(uint32_t word, int i) {
    constexpr int kShift = 22;
    const uint32_t magnitude = (4 * i < kShift ? word << (kShift - 4 * i) : word >> (4 * i - kShift)) & (7u << kShift);
    const uint32_t sign = word << (28 - 4 * i) & 0x80000000u;
    return __uint_as_float(magnitude | sign) * 0x1p126f;
  }
};

template <DType kType, class Codes>
__device__ void store_run(std::byte* to, const Codes& codes, float scale, int64_t count, bool aligned) {
  float values[kRunValues<kType>];
#pragma unroll
  for (int i = 0; i < kRunValues<kType>; ++i) values[i] = codes.value(i) * scale;
  if constexpr (kType == DType::f32) {
    if (count >= 4 && aligned) {
      *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) reinterpret_cast<float*>(to)[i] = values[i];
  } else {
    gpu::Octet<kType> octet;
#pragma unroll
    for (int i = 0; i < gpu::kOctet; i += 2) octet.set_pair(i, values[i], values[i + 1]);
    gpu::store_octet(to, octet, count, aligned);
  }
}

// A wave's piece of kRows rows, kDequantWaves apart.
template <DType kType, bool kFp4>
struct DequantPiece {
  static constexpr int kRows = dequant_rows(kFp4);
  static constexpr int kRun = kRunValues<kType>;
  static constexpr int kRuns = dequant_piece(kFp4) / (kDequantLanes * kRun);  // of a lane
  using Run = Codes<kFp4, kRun>;

  const DequantKernelArgs& args;
  uint32_t first_row, first_col;

  __device__ uint32_t row(int i) const { return first_row + static_cast<uint32_t>(i * kDequantWaves); }
  __device__ bool has_row(int i) const { return row(i) < args.num_rows; }
  __device__ uint32_t col(int at) const {
    return first_col + (static_cast<uint32_t>(at * kDequantLanes) + gpu::Wave<kDequantLanes>::lane()) * kRun;
  }
  __device__ const std::byte* codes_at(int i, uint32_t col) const {
    return args.input.data + row(i) * args.input.stride + (kFp4 ? col / 2 : col);
  }
  __device__ std::byte* values_at(int i, uint32_t col) const {
    constexpr int64_t kValueBytes = kType == DType::f32 ? 4 : 2;
    return args.output.data + row(i) * args.output.stride + col * kValueBytes;
  }
  __device__ float scale(int i, uint32_t col) const {
    const int64_t at =
        (row(i) >> args.row_shift) * args.scales.row_stride + (col >> args.col_shift) * args.scales.col_stride;
    return kFp4 ? gpu::e8m0_to_f32(static_cast<const uint8_t*>(args.scales.data)[at])
                : static_cast<const float*>(args.scales.data)[at];
  }

  // All loads first, and nothing that branches between them.
  __device__ void whole() const {
    uint2 held[kRows];
    float scales[kRows][kRuns];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!has_row(i)) continue;
      held[i] = *reinterpret_cast<const uint2*>(codes_at(i, first_col) + gpu::Wave<kDequantLanes>::lane() * sizeof(uint2));
#pragma unroll
      for (int at = 0; at < kRuns; ++at) scales[i][at] = scale(i, col(at));
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int at = 0; at < kRuns; ++at) {
        const Run codes = Run::exchanged(held[i], at);
        if (has_row(i)) store_run<kType>(values_at(i, col(at)), codes, scales[i][at], kRun, true);
      }
  }

  // The end of a row, or misaligned: every run by itself.
  __device__ void in_parts() const {
    for (int i = 0; i < kRows; ++i)
      for (int at = 0; at < kRuns; ++at) {
        const int64_t count = static_cast<int64_t>(args.num_cols) - col(at);
        if (count <= 0 || !has_row(i)) continue;
        const Run codes = Run::load(codes_at(i, col(at)), count, args.input.aligned);
        store_run<kType>(values_at(i, col(at)), codes, scale(i, col(at)), count, args.output.aligned);
      }
  }
};

template <DType kType, bool kFp4>
__global__ void __launch_bounds__(kDequantWaves* kDequantLanes, 8)
    dequant_octets(const MIXLANE_GRID_CONSTANT DequantKernelArgs args) {
  const uint32_t band = gpu::divide(blockIdx.x, args.by_pieces);
  const uint32_t col = (blockIdx.x - band * args.by_pieces.divisor) * dequant_piece(kFp4);
  const uint32_t wave = gpu::Wave<kDequantLanes>::index_in_block();
  const DequantPiece<kType, kFp4> piece{args, band * kDequantWaves * dequant_rows(kFp4) + wave, col};
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  if (args.whole_pieces && col + dequant_piece(kFp4) <= args.num_cols)
    piece.whole();
  else
    piece.in_parts();
}

}  // namespace mixlane::quant_gpu
