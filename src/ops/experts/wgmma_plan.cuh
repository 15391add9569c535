// Who computes what in experts.wgmma, worked out by every block from the experts' row counts.
//
// A tile is kTileRows rows of one expert's weights times up to kMaxTokens of its rows. A pair of blocks (a cluster) takes
// two tiles at a time, an item: two neighbouring tiles of weights if the expert's rows are few (one tile of tokens), else
// the same weights with two tiles of tokens, so that each block loads half of the weights for both.
#pragma once

#include "gpu/device.hpp"
#include "ops/experts/wgmma_args.hpp"

namespace mixlane::experts_gpu {

inline constexpr uint32_t kTileRows = 256;
inline constexpr uint32_t kMaxTokens = 128;
inline constexpr uint32_t kClusterBlocks = 2;
inline constexpr uint32_t kMaxStages = 8;
inline constexpr uint32_t kSharedBytes = 227 * 1024;

__host__ __device__ constexpr uint32_t round_up(uint32_t value, uint32_t to) { return (value + to - 1) / to * to; }

// Widths that the products come in: 8, 16, 24, 32, 48, 64, 72, 80, 96, 104, 112, 120, 128.
__device__ inline uint32_t product_width(uint32_t tokens) {
  const bool fine = tokens <= 32 || (tokens > 64 && tokens <= 72) || tokens > 96;
  return max(round_up(tokens, fine ? 8 : 16), 8u);
}

struct Tile {
  uint32_t expert = 0;
  uint32_t index = 0;      // of the weights' tile
  uint32_t first_row = 0;  // of the expert's rows
  uint32_t num_rows = 0;   // 0: the block only keeps its neighbour company
  uint32_t width = 8;      // num_rows rounded up to a width
  bool shares_weights = false;
  uint32_t item = 0;
  uint32_t first_range = 0, end_range = 1;  // of k
  uint32_t first_step = 0, end_step = 0;
};

// Sums of narrow tiles are made range by range of k and then added up in order. So blocks can share a tile, when there are
// fewer tiles than blocks, and the bits don't tell.
inline constexpr uint32_t kRanges = 8;
inline constexpr uint32_t kRangeWidth = 16;

// The slot of a tile's first token.
__device__ inline uint32_t slot_of(const Slots& slots, const Tile& tile) {
  return (slots.offsets ? static_cast<uint32_t>(slots.offsets[tile.expert]) : 0) + tile.first_row;
}

// The row of `rows` (gate_up) or of the activated rows (down) that is token `token` of a tile that begins at `slot`, or -1.
template <Product kProduct>
__device__ int32_t row_of(const Slots& slots, const Tile& tile, uint32_t slot, uint32_t token) {
  if (token >= tile.num_rows) return -1;
  if (kProduct == Product::down || !slots.sorted_pairs) return static_cast<int32_t>(slot + token);
  return static_cast<int32_t>(gpu::divide(static_cast<uint32_t>(slots.sorted_pairs[slot + token]), slots.by_topk));
}

// What a stage holds of k. Packed e2m1 weights are decoded on their way to the tensor cores, so that they take a row of
// 64 bytes where the tokens take two of 128.
template <Operands kOperands>
struct Step {
  static constexpr bool kPacked = kOperands == Operands::e2m1;
  static constexpr uint32_t kTokenValueBytes = kOperands == Operands::bf16 || kPacked ? 2 : 1;
  static constexpr uint32_t kWeightRowBytes = kPacked ? 64 : 128;
  static constexpr uint32_t kTokenRows = kPacked ? 2 : 1;  // of 128 bytes, per token
  static constexpr uint32_t kDepth = kTokenRows * 128 / kTokenValueBytes;
  static constexpr uint32_t kWeightBytes = kTileRows * kWeightRowBytes;

  // Of a tile. Sums, products and scales of e4m3 share the registers.
  static constexpr uint32_t kTokens = kOperands == Operands::e4m3_block ? 104 : kMaxTokens;

  __host__ __device__ static uint32_t num_steps(uint32_t depth) { return (depth + kDepth - 1) / kDepth; }
  // Of the tokens of one row of 128 bytes each, at most `width` of them.
  __device__ static uint32_t token_bytes(uint32_t width) { return round_up(width, 16) * 128; }
  __device__ static uint32_t stage_bytes(uint32_t width) { return kWeightBytes + kTokenRows * token_bytes(width); }
};

struct Plan {
  int32_t counts[kMaxWgmmaExperts];
  uint32_t first_item[kMaxWgmmaExperts];  // of an expert; later ones of no rows have the same
  uint32_t warp_sums[32];
  uint32_t warp_widths[32];
  uint32_t num_experts;
  uint32_t num_items;
  uint32_t num_tiles;   // of an expert's weights
  uint32_t max_tokens;  // of any tile, at most
  uint32_t max_width;   // of the widest one
  uint32_t num_stages;
  uint32_t num_steps;  // of k
  uint32_t num_parts;  // blocks that share a tile: a divisor of kRanges

  __device__ uint32_t num_units() const { return num_items * num_parts; }
  __device__ uint32_t range_begin(uint32_t range) const { return range * num_steps / kRanges; }
  // Tiles of tokens: one, or an even number.
  __device__ uint32_t token_tiles(uint32_t count) const {
    if (count <= max_tokens) return count == 0 ? 0 : 1;
    return (count + 2 * max_tokens - 1) / (2 * max_tokens) * 2;
  }
  __device__ uint32_t items(uint32_t count) const {
    const uint32_t tiles = token_tiles(count);
    return tiles <= 1 ? tiles * ((num_tiles + 1) / 2) : tiles / 2 * num_tiles;
  }
  __device__ uint32_t tile_tokens(uint32_t count) const {
    const uint32_t tiles = token_tiles(count);
    return tiles <= 1 ? count : (count + tiles - 1) / tiles;
  }

  // By all threads of the block; they must meet before it is used. Shared memory beside the stages: `other_bytes`, more per
  // token of the widest tile, and in each stage `scale_bytes` per token.
  template <Operands kOperands>
  __device__ void make(const Slots& slots, uint32_t depth, uint32_t num_weight_tiles, uint32_t other_bytes,
                       uint32_t bytes_per_token, uint32_t scale_bytes, uint32_t stage_scale_bytes) {
    constexpr uint32_t kPerThread = 4;
    const uint32_t first = threadIdx.x * kPerThread;
    uint32_t rows[kPerThread];
    uint32_t width = 8;
    uint32_t sum = 0;
    if (threadIdx.x == 0) {
      num_tiles = num_weight_tiles;
      num_steps = Step<kOperands>::num_steps(depth);
      max_tokens = Step<kOperands>::kTokens;
    }
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) {
      rows[i] = 0;
      if (first + i < slots.num_experts)
        rows[i] = slots.counts ? static_cast<uint32_t>(max(slots.counts[first + i], 0)) : slots.num_rows;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) {
      sum += items(rows[i]);
      width = max(width, product_width(tile_tokens(rows[i])));
    }
    using Wave = gpu::Wave<32>;
    const uint32_t below = Wave::inclusive_sum(sum);
    width = __reduce_max_sync(~0u, width);
    if (Wave::lane() == 31) warp_sums[Wave::index_in_block()] = below;
    if (Wave::lane() == 0) warp_widths[Wave::index_in_block()] = width;
    __syncthreads();
    uint32_t item = below - sum;
    for (uint32_t w = 0; w < Wave::index_in_block(); ++w) item += warp_sums[w];
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) {
      if (first + i >= slots.num_experts) break;
      counts[first + i] = static_cast<int32_t>(rows[i]);
      first_item[first + i] = item;
      item += items(rows[i]);
    }
    if (threadIdx.x == blockDim.x - 1) {
      num_experts = slots.num_experts;
      num_items = item;
      for (uint32_t w = 0; w < blockDim.x / 32; ++w) width = max(width, warp_widths[w]);
      max_width = width;
      num_parts = 1;
      if (width <= kRangeWidth)
        while (num_parts < kRanges && item > 0 && item * num_parts * 2 <= gridDim.x / kClusterBlocks) num_parts *= 2;
      num_stages = min((kSharedBytes - other_bytes - bytes_per_token * width) /
                           (Step<kOperands>::stage_bytes(width) + width * scale_bytes + stage_scale_bytes),
                       kMaxStages);
    }
  }

  // The tile that block `rank` of a pair has in a unit, a part of an item.
  __device__ Tile tile(uint32_t unit, uint32_t rank) const {
    const uint32_t item = unit / num_parts;
    uint32_t low = 0, high = num_experts;  // the expert is in [low, high)
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (first_item[middle] <= item)
        low = middle;
      else
        high = middle;
    }
    Tile tile;
    tile.expert = low;
    const uint32_t local = item - first_item[low];
    const auto count = static_cast<uint32_t>(counts[low]);
    const uint32_t tiles = token_tiles(count);
    if (tiles <= 1) {
      tile.index = 2 * local + rank;
      tile.num_rows = tile.index < num_tiles ? count : 0;
      tile.width = product_width(count);
    } else {
      const uint32_t tokens = tile_tokens(count);
      tile.index = local / (tiles / 2);
      tile.first_row = (local % (tiles / 2) * 2 + rank) * tokens;
      tile.num_rows = tile.first_row < count ? min(tokens, count - tile.first_row) : 0;
      tile.width = product_width(tokens);
      tile.shares_weights = true;
    }
    tile.item = item;
    if (tile.width <= kRangeWidth) {
      const uint32_t ranges = kRanges / num_parts;
      tile.first_range = unit % num_parts * ranges;
      tile.end_range = tile.first_range + ranges;
      tile.first_step = range_begin(tile.first_range);
      tile.end_step = range_begin(tile.end_range);
    } else {
      tile.end_step = num_steps;
    }
    return tile;
  }
};

}  // namespace mixlane::experts_gpu
