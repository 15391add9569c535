// The quantisation kernels. They touch global memory only after their predecessor in the stream, unless the caller has said
// that they have nothing in common.
#pragma once

#include <type_traits>

#include "gpu/device.hpp"
#include "ops/quant/device_args.hpp"
#include "ops/quant/encode.cuh"

namespace mixlane::quant_gpu {

inline constexpr int kGroupThreads = 256;
inline constexpr int kMaxTileThreads = 512;
inline constexpr uint32_t kTileRows = 128;      // of a 128x128 tile
inline constexpr uint32_t kTileRowOctets = 16;  // of a 128x128 tile

// Waits for the predecessor at the kernel's begin, or at its end if they are independent: who waits for this kernel relies
// on all that came before it.
class WaitForPrevious {
 public:
  __device__ explicit WaitForPrevious(bool at_end) : at_end_(at_end) {
    if (!at_end_) gpu::wait_for_previous_kernel();
  }
  __device__ ~WaitForPrevious() {
    if (at_end_) gpu::wait_for_previous_kernel();
  }
  WaitForPrevious(const WaitForPrevious&) = delete;
  WaitForPrevious& operator=(const WaitForPrevious&) = delete;

 private:
  bool at_end_;
};

__device__ inline uint32_t valid_rows(const QuantKernelArgs& args) {
  if (!args.num_valid_rows) return args.num_rows;
  return static_cast<uint32_t>(min(max(*args.num_valid_rows, 0), static_cast<int32_t>(args.num_rows)));
}

template <DType kType>
__device__ gpu::Octet<kType> load(const QuantKernelArgs& args, uint32_t row, uint32_t col) {
  constexpr int64_t kBytes = gpu::Octet<kType>::kWords * 4 / gpu::kOctet;
  const std::byte* at = args.input.data + row * args.input.stride + col * kBytes;
  return gpu::load_octet<kType>(at, static_cast<int64_t>(args.num_cols) - col, args.input.aligned);
}

template <class Scale, DType kType>
__device__ void store(const QuantKernelArgs& args, const Scale& scale, const gpu::Octet<kType>& octet, uint32_t row,
                      uint32_t col) {
  std::byte* at = args.output.data + row * args.output.stride + static_cast<int64_t>(col) * Scale::kBitsPerCode / 8;
  store_codes(at, scale.encode(octet), static_cast<int64_t>(args.num_cols) - col, args.output.aligned, Scale::kBitsPerCode);
}

// quant.groups: kLanes lanes hold a group of 8 * kLanes values; a thread holds octets of kHeld rows below each other, so
// that enough loads are in flight and one address leads to all of them.
template <class Scale, DType kType, int kLanes, uint32_t kHeld>
__global__ void __launch_bounds__(kGroupThreads, kType == DType::f32 ? 4
                                                 : kHeld == 4        ? 6
                                                                     : 8)
    quant_groups(const MIXLANE_GRID_CONSTANT QuantKernelArgs args) {
  const uint32_t at = (blockIdx.x * kGroupThreads + threadIdx.x) / kLanes;
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t band = gpu::divide(at, args.by_tile_cols);
  const uint32_t tile_col = at - band * args.by_tile_cols.divisor;
  const uint32_t row = band * kHeld;
  const uint32_t col = (tile_col * kLanes + lane) * gpu::kOctet;
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const uint32_t num_rows = valid_rows(args);
  const uint32_t count = row < num_rows ? min(num_rows - row, kHeld) : 0;

  gpu::Octet<kType> octets[kHeld];
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    octets[i] = {};
    if (i < count && col < args.num_cols) octets[i] = load<kType>(args, row + i, col);
  }
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    const Scale scale(gpu::wave_max<kLanes>(Scale::magnitude(octets[i])));
    if (i >= count) continue;
    if (col < args.num_cols) store(args, scale, octets[i], row + i, col);
    if (lane == 0) scale.store(args.scales.data, (row + i) * args.scales.row_stride + tile_col * args.scales.col_stride);
  }
}

__device__ inline uint4 join(uint2 low, uint2 high) { return make_uint4(low.x, low.y, high.x, high.y); }
__device__ inline uint2 join(uint32_t low, uint32_t high) { return make_uint2(low, high); }

// The same for many whole groups of 16-bit values: a thread holds two neighbouring octets of kHeld rows and stores their
// codes as one piece.
template <class Scale, DType kType, int kLanes, uint32_t kHeld>
__global__ void __launch_bounds__(kGroupThreads, 6) quant_groups_whole(const MIXLANE_GRID_CONSTANT QuantKernelArgs args) {
  constexpr int kShare = kLanes / 2;
  const uint32_t at = (blockIdx.x * kGroupThreads + threadIdx.x) / kShare;
  const uint32_t lane = threadIdx.x % kShare;
  const uint32_t band = gpu::divide(at, args.by_tile_cols);
  const uint32_t tile_col = at - band * args.by_tile_cols.divisor;
  const uint32_t row = band * kHeld;
  const uint32_t col = (tile_col * kShare + lane) * 2 * gpu::kOctet;
  const std::byte* const from = args.input.data + row * args.input.stride + col * 2;
  std::byte* const to = args.output.data + row * args.output.stride + col * Scale::kBitsPerCode / 8;
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const uint32_t num_rows = valid_rows(args);
  gpu::Octet<kType> octets[kHeld][2];
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
      octets[i][half] = row + i < num_rows
                            ? gpu::load_octet<kType>(from + i * args.input.stride + half * 16, gpu::kOctet, true)
                            : gpu::Octet<kType>{};
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    const uint32_t largest = max(Scale::magnitude(octets[i][0]), Scale::magnitude(octets[i][1]));
    const Scale scale(gpu::wave_max<kShare>(largest));
    if (row + i >= num_rows) continue;
    const auto codes = join(scale.encode(octets[i][0]), scale.encode(octets[i][1]));
    *reinterpret_cast<std::remove_const_t<decltype(codes)>*>(to + i * args.output.stride) = codes;
    if (lane == 0) scale.store(args.scales.data, (row + i) * args.scales.row_stride + tile_col * args.scales.col_stride);
  }
}

// The largest `value` of the block, in all its threads.
template <int kWave>
__device__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t largest;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  value = gpu::wave_max<kWave>(value);
  if (gpu::Wave<kWave>::lane() == 0) atomicMax(&largest, value);
  __syncthreads();
  return largest;
}

// The octets of the tile that belongs to a block: a row, or 128x128 values.
struct TileOctets {
  uint32_t row = 0;
  uint32_t num_octets = 0;
  uint32_t tile_col = 0;  // in tiles
  bool square = false;

  __device__ uint32_t row_of(uint32_t octet) const { return square ? row + octet / kTileRowOctets : row; }
  __device__ uint32_t col_of(uint32_t octet) const {
    return square ? (tile_col * kTileRowOctets + octet % kTileRowOctets) * gpu::kOctet : octet * gpu::kOctet;
  }
};

__device__ inline TileOctets tile_of_block(const QuantKernelArgs& args, uint32_t num_rows, bool square) {
  TileOctets tile;
  tile.square = square;
  if (square) {
    const uint32_t tile_row = gpu::divide(blockIdx.x, args.by_tile_cols);
    tile.tile_col = blockIdx.x - tile_row * args.by_tile_cols.divisor;
    tile.row = tile_row * kTileRows;
    tile.num_octets = tile.row < num_rows ? min(num_rows - tile.row, kTileRows) * kTileRowOctets : 0;
  } else {
    tile.row = blockIdx.x;
    tile.num_octets = tile.row < num_rows ? (args.num_cols + gpu::kOctet - 1) / gpu::kOctet : 0;
  }
  return tile;
}

// quant.tiles: a block per tile. What the tile has beyond kTileHeld octets per thread is read twice, out of a cache.
inline constexpr uint32_t kTileHeld = 4;

template <DType kType, int kWave>
__global__ void __launch_bounds__(kMaxTileThreads, kType == DType::f32 ? 2 : 3)
    quant_tiles(const QuantKernelArgs args, bool square) {
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const TileOctets tile = tile_of_block(args, valid_rows(args), square);
  if (tile.num_octets == 0) return;
  const auto read = [&](uint32_t octet) {
    const uint32_t col = tile.col_of(octet);
    return octet < tile.num_octets && col < args.num_cols ? load<kType>(args, tile.row_of(octet), col) : gpu::Octet<kType>{};
  };
  gpu::Octet<kType> octets[kTileHeld];
  uint32_t magnitude = 0;
#pragma unroll
  for (uint32_t i = 0; i < kTileHeld; ++i) octets[i] = read(threadIdx.x + i * blockDim.x);
#pragma unroll
  for (uint32_t i = 0; i < kTileHeld; ++i) magnitude = max(magnitude, E4m3Scale::magnitude(octets[i]));
  for (uint32_t octet = threadIdx.x + kTileHeld * blockDim.x; octet < tile.num_octets; octet += blockDim.x)
    magnitude = max(magnitude, E4m3Scale::magnitude(read(octet)));

  const E4m3Scale scale(block_max<kWave>(magnitude));
  if (threadIdx.x == 0) {
    const uint32_t tile_row = square ? tile.row / kTileRows : tile.row;
    scale.store(args.scales.data, tile_row * args.scales.row_stride + tile.tile_col * args.scales.col_stride);
  }
  const auto write = [&](uint32_t octet, const gpu::Octet<kType>& values) {
    const uint32_t col = tile.col_of(octet);
    if (octet < tile.num_octets && col < args.num_cols) store(args, scale, values, tile.row_of(octet), col);
  };
#pragma unroll
  for (uint32_t i = 0; i < kTileHeld; ++i) write(threadIdx.x + i * blockDim.x, octets[i]);
  for (uint32_t octet = threadIdx.x + kTileHeld * blockDim.x; octet < tile.num_octets; octet += blockDim.x)
    write(octet, read(octet));
}

// dequant.octets: up to kMaxHeld runs per thread, all loads first. A run is what a thread writes in one piece: eight values,
// or four of f32, so that neighbouring threads fill whole sectors.
inline constexpr uint32_t kMaxHeld = 4;

template <DType kType>
inline constexpr int kRunValues = dequant_run(kType);

template <bool kFp4, int kCount>
struct Codes {
  static constexpr int kBytes = kFp4 ? kCount / 2 : kCount;
  using Word = std::conditional_t<kBytes == 8, uint64_t, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>;
  Word word;

  __device__ float value(int i) const {
    if constexpr (kFp4)
      return gpu::e2m1_to_f32(static_cast<uint32_t>(word >> (4 * i)) & 15u);
    else
      return gpu::e4m3_to_f32(static_cast<uint32_t>(word >> (8 * i)) & 255u);
  }

  __device__ static Codes load(const std::byte* from, int64_t count, bool aligned) {
    if (count >= kCount && aligned) return {*reinterpret_cast<const Word*>(from)};
    Codes codes{};
#pragma unroll
    for (int b = 0; b < kBytes; ++b)
      if ((kFp4 ? 2 * b : b) < count) codes.word = static_cast<Word>(codes.word | static_cast<Word>(from[b]) << (8 * b));
    return codes;
  }
};

template <DType kType>
__device__ void store_run(std::byte* to, const float (&values)[kRunValues<kType>], int64_t count, bool aligned) {
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

template <DType kType, bool kFp4>
__global__ void __launch_bounds__(kGroupThreads) dequant_octets(const DequantKernelArgs args, uint32_t held) {
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  constexpr int kRun = kRunValues<kType>;
  const uint32_t at = blockIdx.x * kGroupThreads + threadIdx.x;
  const uint32_t band = gpu::divide(at, args.by_runs);
  const uint32_t col = (at - band * args.by_runs.divisor) * kRun;
  const uint32_t row = band * held;
  if (row >= args.num_rows) return;
  const uint32_t count = min(args.num_rows - row, held);
  const int64_t num_values = static_cast<int64_t>(args.num_cols) - col;
  const std::byte* from = args.input.data + row * args.input.stride + (kFp4 ? col / 2 : col);
  const int64_t scale_col = (col >> args.col_shift) * args.scales.col_stride;

  Codes<kFp4, kRun> codes[kMaxHeld];
  float scales[kMaxHeld];
#pragma unroll
  for (uint32_t i = 0; i < kMaxHeld; ++i) {
    if (i >= count) break;
    codes[i] = Codes<kFp4, kRun>::load(from + i * args.input.stride, num_values, args.input.aligned);
    const int64_t scale_at = ((row + i) >> args.row_shift) * args.scales.row_stride + scale_col;
    scales[i] = kFp4 ? gpu::e8m0_to_f32(static_cast<const uint8_t*>(args.scales.data)[scale_at])
                     : static_cast<const float*>(args.scales.data)[scale_at];
  }
  constexpr int64_t kValueBytes = kType == DType::f32 ? 4 : 2;
  std::byte* to = args.output.data + row * args.output.stride + col * kValueBytes;
#pragma unroll
  for (uint32_t i = 0; i < kMaxHeld; ++i) {
    if (i >= count) break;
    float values[kRun];
#pragma unroll
    for (int v = 0; v < kRun; ++v) values[v] = codes[i].value(v) * scales[i];
    store_run<kType>(to + i * args.output.stride, values, num_values, args.output.aligned);
  }
}

}  // namespace mixlane::quant_gpu
