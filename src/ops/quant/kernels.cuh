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

// Where lanes that hold a group find it. Waves go along a row, or down 2^kLog2Down rows first, so that scales whose columns
// are contiguous leave in pieces.
template <uint32_t kLog2Down>
struct GroupPlace {
  static constexpr uint32_t kRowStep = 1u << kLog2Down;  // from one held row to the next
  uint32_t row, tile_col;

  __device__ GroupPlace(const QuantKernelArgs& args, uint32_t at, uint32_t held) {
    const uint32_t along = at >> kLog2Down;
    const uint32_t band = gpu::divide(along, args.by_tile_cols);
    row = band * held * kRowStep + at % kRowStep;
    tile_col = along - band * args.by_tile_cols.divisor;
  }
  __device__ uint32_t row_of(uint32_t held) const { return row + held * kRowStep; }
  // How many of the held rows there are.
  __device__ uint32_t count(uint32_t num_rows, uint32_t held) const {
    return row < num_rows ? min((num_rows - row + kRowStep - 1) / kRowStep, held) : 0;
  }
};

// quant.groups: kLanes lanes hold a group of 8 * kLanes values; a thread holds octets of kHeld rows below each other, so
// that enough loads are in flight and one address leads to all of them.
template <class Scale, DType kType, int kLanes, uint32_t kHeld, uint32_t kLog2Down>
__global__ void __launch_bounds__(kGroupThreads, kType == DType::f32 ? 4
                                                 : kHeld == 4        ? 6
                                                                     : 8)
    quant_groups(const MIXLANE_GRID_CONSTANT QuantKernelArgs args) {
  const GroupPlace<kLog2Down> place(args, (blockIdx.x * kGroupThreads + threadIdx.x) / kLanes, kHeld);
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t col = (place.tile_col * kLanes + lane) * gpu::kOctet;
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const uint32_t count = place.count(valid_rows(args), kHeld);

  gpu::Octet<kType> octets[kHeld];
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    octets[i] = {};
    if (i < count && col < args.num_cols) octets[i] = load<kType>(args, place.row_of(i), col);
  }
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    const Scale scale(gpu::wave_max<kLanes>(Scale::magnitude(octets[i])));
    if (i >= count) continue;
    if (col < args.num_cols) store(args, scale, octets[i], place.row_of(i), col);
    if (lane == 0)
      scale.store(args.scales.data, place.row_of(i) * args.scales.row_stride + place.tile_col * args.scales.col_stride);
  }
}

__device__ inline uint4 join(uint2 low, uint2 high) { return make_uint4(low.x, low.y, high.x, high.y); }
__device__ inline uint2 join(uint32_t low, uint32_t high) { return make_uint2(low, high); }

// The same for many whole groups of 16-bit values: a thread holds two neighbouring octets of kHeld rows and stores their
// codes as one piece.
template <class Scale, DType kType, int kLanes, uint32_t kHeld, uint32_t kLog2Down>
__global__ void __launch_bounds__(kGroupThreads, 6) quant_groups_whole(const MIXLANE_GRID_CONSTANT QuantKernelArgs args) {
  constexpr int kShare = kLanes / 2;
  const GroupPlace<kLog2Down> place(args, (blockIdx.x * kGroupThreads + threadIdx.x) / kShare, kHeld);
  const uint32_t lane = threadIdx.x % kShare;
  const uint32_t col = (place.tile_col * kShare + lane) * 2 * gpu::kOctet;
  const int64_t from_step = args.input.stride * place.kRowStep;
  const int64_t to_step = args.output.stride * place.kRowStep;
  const std::byte* const from = args.input.data + place.row * args.input.stride + col * 2;
  std::byte* const to = args.output.data + place.row * args.output.stride + col * Scale::kBitsPerCode / 8;
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const uint32_t num_rows = valid_rows(args);
  gpu::Octet<kType> octets[kHeld][2];
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
      octets[i][half] = place.row_of(i) < num_rows
                            ? gpu::load_octet<kType>(from + i * from_step + half * 16, gpu::kOctet, true)
                            : gpu::Octet<kType>{};
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) {
    const uint32_t largest = max(Scale::magnitude(octets[i][0]), Scale::magnitude(octets[i][1]));
    const Scale scale(gpu::wave_max<kShare>(largest));
    if (place.row_of(i) >= num_rows) continue;
    const auto codes = join(scale.encode(octets[i][0]), scale.encode(octets[i][1]));
    *reinterpret_cast<std::remove_const_t<decltype(codes)>*>(to + i * to_step) = codes;
    if (lane == 0)
      scale.store(args.scales.data, place.row_of(i) * args.scales.row_stride + place.tile_col * args.scales.col_stride);
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

// What a thread of quant.tiles takes at once: an octet, or two beside each other whose codes it stores as one piece. Two
// only in rows of whole, aligned pairs.
template <DType kType, int kBeside>
struct TileItem {
  gpu::Octet<kType> octets[kBeside];

  __device__ static TileItem load(const QuantKernelArgs& args, const TileOctets& tile, uint32_t at) {
    TileItem item{};
    if (at * kBeside >= tile.num_octets) return item;
    const uint32_t row = tile.row_of(at * kBeside), col = tile.col_of(at * kBeside);
    if constexpr (kBeside == 1) {
      if (col < args.num_cols) item.octets[0] = quant_gpu::load<kType>(args, row, col);
    } else {
      constexpr int64_t kOctetBytes = gpu::Octet<kType>::kWords * 4;
      const std::byte* from = args.input.data + row * args.input.stride + col / gpu::kOctet * kOctetBytes;
#pragma unroll
      for (int i = 0; i < kBeside; ++i) item.octets[i] = gpu::load_octet<kType>(from + i * kOctetBytes, gpu::kOctet, true);
    }
    return item;
  }
  __device__ uint32_t magnitude() const {
    uint32_t largest = 0;
#pragma unroll
    for (const gpu::Octet<kType>& octet : octets) largest = max(largest, E4m3Scale::magnitude(octet));
    return largest;
  }
  __device__ void store(const QuantKernelArgs& args, const TileOctets& tile, const E4m3Scale& scale, uint32_t at) const {
    if (at * kBeside >= tile.num_octets) return;
    const uint32_t row = tile.row_of(at * kBeside), col = tile.col_of(at * kBeside);
    if constexpr (kBeside == 1) {
      if (col < args.num_cols) quant_gpu::store(args, scale, octets[0], row, col);
    } else {
      *reinterpret_cast<uint4*>(args.output.data + row * args.output.stride + col) =
          join(scale.encode(octets[0]), scale.encode(octets[1]));
    }
  }
};

// quant.tiles: a block per tile. What the tile has beyond kTileHeld octets per thread is read twice, out of a cache.
inline constexpr uint32_t kTileHeld = 4;

template <DType kType, int kWave, int kBeside>
__global__ void __launch_bounds__(kMaxTileThreads, kType == DType::f32 ? 2 : 3)
    quant_tiles(const MIXLANE_GRID_CONSTANT QuantKernelArgs args, bool square) {
  constexpr uint32_t kHeld = kTileHeld / kBeside;
  using Item = TileItem<kType, kBeside>;
  const WaitForPrevious wait(args.independent_of_previous);
  gpu::allow_next_kernel();
  const TileOctets tile = tile_of_block(args, valid_rows(args), square);
  if (tile.num_octets == 0) return;
  Item items[kHeld];
  uint32_t magnitude = 0;
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) items[i] = Item::load(args, tile, threadIdx.x + i * blockDim.x);
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) magnitude = max(magnitude, items[i].magnitude());
  for (uint32_t at = threadIdx.x + kHeld * blockDim.x; at * kBeside < tile.num_octets; at += blockDim.x)
    magnitude = max(magnitude, Item::load(args, tile, at).magnitude());

  const E4m3Scale scale(block_max<kWave>(magnitude));
  if (threadIdx.x == 0) {
    const uint32_t tile_row = square ? tile.row / kTileRows : tile.row;
    scale.store(args.scales.data, tile_row * args.scales.row_stride + tile.tile_col * args.scales.col_stride);
  }
#pragma unroll
  for (uint32_t i = 0; i < kHeld; ++i) items[i].store(args, tile, scale, threadIdx.x + i * blockDim.x);
  for (uint32_t at = threadIdx.x + kHeld * blockDim.x; at * kBeside < tile.num_octets; at += blockDim.x)
    Item::load(args, tile, at).store(args, tile, scale, at);
}

}  // namespace mixlane::quant_gpu
