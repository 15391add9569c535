// Who computes what in experts.wgmma, worked out by every block from the experts' row counts.
//
// A tile is kTileRows rows of one expert's weights times some of its rows: narrow (few rows; the weights are the left
// operand, and the width of the product is the number of rows) or wide (up to kWideTokens rows, which are the left operand).
// A pair of blocks (a cluster) takes two tiles at a time, an item: two neighbouring tiles of weights for the same rows, or
// the same weights for two tiles of rows, so that each block loads half of the weights for both. An expert's rows are as
// many full pairs of tiles as there are, and what remains.
#pragma once

#include "gpu/device.hpp"
#include "ops/experts/wgmma_args.hpp"

namespace mixlane::experts_gpu {

inline constexpr uint32_t kTileRows = 256;
inline constexpr uint32_t kMaxTokens = 128;
inline constexpr uint32_t kWideTokens = 128;
inline constexpr uint32_t kClusterBlocks = 2;
inline constexpr uint32_t kMaxStages = 8;
inline constexpr uint32_t kSharedBytes = 227 * 1024;

__host__ __device__ constexpr uint32_t round_up(uint32_t value, uint32_t to) { return (value + to - 1) / to * to; }

// Widths that narrow products come in: 8, 16, 24, 32, 48, 64, 72, 80, 96, 128, 144, 160.
__device__ inline uint32_t product_width(uint32_t tokens) {
  if (tokens > 128) return round_up(tokens, 16);
  if (tokens > 96) return 128;
  if (tokens > 80) return 96;
  return max(round_up(tokens, tokens <= 32 || (tokens > 64 && tokens <= 72) ? 8 : 16), 8u);
}

// Sums of tiles of at most kRangeWidth tokens are made range by range of k and then added up in order. Where all tiles are
// such, blocks get equal shares of all ranges: a tile may be of several blocks, and the bits don't tell.
inline constexpr uint32_t kRanges = 8;
inline constexpr uint32_t kRangeWidth = 16;

struct Tile {
  uint32_t expert = 0;
  uint32_t index = 0;      // of the weights' tile
  uint32_t first_row = 0;  // of the expert's rows
  uint32_t num_rows = 0;   // 0: the block only keeps its neighbour company
  uint32_t width = 8;      // num_rows rounded up: to a product's width, wide ones to 16
  bool wide = false;
  bool shares_weights = false;
  uint32_t item = 0;
  uint32_t first_range = 0, end_range = kRanges;  // of k
  uint32_t first_step = 0, end_step = 0;
};

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

// Weights are e2m1; tokens are e4m3 with a scale per 128 of k.
__host__ __device__ constexpr bool is_packed(Operands operands) {
  return operands == Operands::e2m1 || operands == Operands::e2m1_e4m3;
}
__host__ __device__ constexpr bool has_token_groups(Operands operands) {
  return operands == Operands::e4m3_block || operands == Operands::e2m1_e4m3;
}

// What a stage holds of k. Packed e2m1 weights are decoded on their way to the tensor cores, so that they take a row of
// 64 bytes where bf16 tokens take two of 128 and e4m3 ones one.
template <Operands kOperands>
struct Step {
  static constexpr bool kPacked = is_packed(kOperands);
  static constexpr uint32_t kTokenValueBytes = kOperands == Operands::bf16 || kOperands == Operands::e2m1 ? 2 : 1;
  static constexpr uint32_t kWeightRowBytes = kPacked ? 64 : 128;
  static constexpr uint32_t kTokenRows = kOperands == Operands::e2m1 ? 2 : 1;  // of 128 bytes, per token
  static constexpr uint32_t kDepth = kTokenRows * 128 / kTokenValueBytes;
  static constexpr uint32_t kWeightBytes = kTileRows * kWeightRowBytes;

  // Most rows of a narrow tile. Where there are wide ones, these take over when they are faster; e4m3's sums, products and
  // scales share the registers besides.
  static constexpr bool kHasWide = !kPacked;
  static constexpr uint32_t kTokens = kPacked ? 128 : kOperands == Operands::bf16 ? 96 : 64;
  // Narrow tiles may be longer than wide ones: a few rows too many do not become tiles of their own.
  static constexpr uint32_t kMaxTokens = kOperands == Operands::bf16 ? 160 : 128;

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
  uint32_t num_tiles;      // of an expert's weights
  uint32_t narrow_tokens;  // most rows of a narrow tile
  uint32_t tile_tokens;    // of a full tile
  uint32_t long_tokens;    // most rows of a remaining one
  bool splits;             // rows for a full tile and a narrow one: one after the other, not side by side
  uint32_t max_width;      // of the widest one
  uint32_t num_stages;
  uint32_t num_steps;  // of k
  bool shares_ranges;  // a pair of blocks has a share of all items' ranges, not whole items

  __device__ uint32_t range_begin(uint32_t range) const { return range * num_steps / kRanges; }

  // An expert's items: of two tiles of weights at a time, so that they meet in L2, those of the full pairs of tiles of rows
  // and then those of the remaining rows: one for both tiles of weights if one tile holds them, else a pair for each.
  struct Items {
    uint32_t full;       // pairs of tiles of rows, per tile of weights
    uint32_t remaining;  // rows
    uint32_t more;       // items for these, per two tiles of weights
    __device__ uint32_t per_two() const { return 2 * full + more; }
    __device__ uint32_t of(uint32_t tiles) const { return tiles / 2 * per_two() + tiles % 2 * (full + min(more, 1u)); }
  };
  __device__ Items items(uint32_t count) const {
    Items items;
    items.full = count / (2 * tile_tokens);
    items.remaining = count - items.full * 2 * tile_tokens;
    if (items.full > 0 && items.remaining > 0 && items.remaining <= 2 * (long_tokens - tile_tokens)) {
      --items.full;
      items.remaining += 2 * tile_tokens;
    }
    items.more = items.remaining == 0 ? 0 : items.remaining <= long_tokens ? 1 : 2;
    return items;
  }
  // The width of the widest tile of so many rows.
  __device__ uint32_t widest(uint32_t count) const {
    const Items all = items(count);
    const uint32_t remaining = all.more < 2 ? all.remaining : (all.remaining + 1) / 2;
    const uint32_t tokens = splits_remaining(all) || all.full > 0 ? max(tile_tokens, remaining) : remaining;
    return is_wide(tokens) ? kWideTokens : product_width(tokens);
  }
  __device__ bool is_wide(uint32_t tokens) const { return tokens > narrow_tokens && tokens <= tile_tokens; }
  // Side by side both tiles would cost what full ones cost.
  __device__ bool splits_remaining(const Items& all) const {
    return splits && all.more == 2 && all.remaining <= tile_tokens + narrow_tokens;
  }

  // By all threads of the block; they must meet before it is used. Shared memory beside the stages: `other_bytes`, more per
  // token of the widest tile, and in each stage `scale_bytes` per token and `stage_scale_bytes`.
  template <Operands kOperands>
  __device__ void make(const Slots& slots, bool has_wide, uint32_t depth, uint32_t num_weight_tiles, uint32_t other_bytes,
                       uint32_t bytes_per_token, uint32_t scale_bytes, uint32_t stage_scale_bytes) {
    constexpr uint32_t kPerThread = 4;
    const uint32_t first = threadIdx.x * kPerThread;
    uint32_t rows[kPerThread];
    uint32_t width = 8;
    uint32_t sum = 0;
    if (threadIdx.x == 0) {
      num_tiles = num_weight_tiles;
      num_steps = Step<kOperands>::num_steps(depth);
      narrow_tokens = Step<kOperands>::kTokens;
      tile_tokens = has_wide ? kWideTokens : narrow_tokens;
      long_tokens = max(tile_tokens, has_wide ? Step<kOperands>::kMaxTokens : 0);
      splits = has_wide && kOperands != Operands::bf16;
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
      sum += items(rows[i]).of(num_tiles);
      width = max(width, widest(rows[i]));
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
      item += items(rows[i]).of(num_tiles);
    }
    if (threadIdx.x == blockDim.x - 1) {
      num_experts = slots.num_experts;
      num_items = item;
      for (uint32_t w = 0; w < blockDim.x / 32; ++w) width = max(width, warp_widths[w]);
      max_width = width;
      shares_ranges = width <= kRangeWidth;
      num_stages = min((kSharedBytes - other_bytes - bytes_per_token * width) /
                           (Step<kOperands>::stage_bytes(width) + width * scale_bytes + stage_scale_bytes),
                       kMaxStages);
    }
  }

  // The tile that block `rank` of a pair has in an item.
  __device__ Tile tile(uint32_t item, uint32_t rank) const {
    uint32_t low = 0, high = num_experts;  // the expert is in [low, high)
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (first_item[middle] <= item)
        low = middle;
      else
        high = middle;
    }
    Tile tile;
    tile.item = item;
    tile.expert = low;
    tile.end_step = num_steps;
    place(item - first_item[low], static_cast<uint32_t>(counts[low]), rank, tile);
    return tile;
  }

  // Which of an expert's weights and rows are block `rank`'s in item `local`.
  __device__ void place(uint32_t local, uint32_t count, uint32_t rank, Tile& tile) const {
    const Items all = items(count);
    const uint32_t two = local / all.per_two();
    local -= two * all.per_two();
    const uint32_t num_full = min(num_tiles - 2 * two, 2u) * all.full;
    uint32_t tokens = tile_tokens;
    uint32_t part = rank;  // of the tiles of rows
    if (local < num_full) {
      tile.index = 2 * two + local / all.full;
      part += local % all.full * 2;
      tile.shares_weights = true;
    } else if (splits_remaining(all) && 2 * two + 1 < num_tiles) {
      const uint32_t before = (local - num_full) * tile_tokens;
      tile.index = 2 * two + rank;
      part = 0;
      tokens = local == num_full ? tile_tokens : all.remaining - tile_tokens;
      tile.first_row = all.full * 2 * tile_tokens + before;
    } else if (all.more == 2) {
      tile.index = 2 * two + local - num_full;
      tokens = (all.remaining + 1) / 2;
      tile.first_row = all.full * 2 * tile_tokens;
      tile.shares_weights = true;
    } else {
      tile.index = 2 * two + rank;
      part = 0;
      tokens = all.remaining;
      tile.first_row = all.full * 2 * tile_tokens;
    }
    tile.wide = is_wide(tokens);
    tile.width = tile.wide ? round_up(tokens, 16) : product_width(tokens);
    tile.first_row += part * tokens;
    if (tile.index < num_tiles && tile.first_row < count) tile.num_rows = min(tokens, count - tile.first_row);
  }

  __device__ static uint32_t num_pairs() { return gridDim.x / kClusterBlocks; }
  // Where a pair's share of all ranges begins; range r of item i is number i * kRanges + r.
  __device__ uint32_t share_begin(uint32_t pair) const { return pair * (num_items * kRanges) / num_pairs(); }
  __device__ uint32_t pair_of_range(uint32_t number) const {
    return ((number + 1) * num_pairs() - 1) / (num_items * kRanges);
  }

  // One call of `body`: it is large.
  template <class Body>
  __device__ void for_each_tile(uint32_t rank, Body&& body) const {
    const uint32_t pair = blockIdx.x / kClusterBlocks;
    uint32_t at = shares_ranges ? share_begin(pair) : 0;  // a range's number, or a round
    const uint32_t end = shares_ranges ? share_begin(pair + 1) : (num_items + num_pairs() - 1) / num_pairs();
    while (at < end) {
      // Neighbouring items differ in size: the shift lets all pairs have some of each.
      const uint32_t item = shares_ranges ? at / kRanges : at * num_pairs() + (pair + at) % num_pairs();
      if (item >= num_items) break;
      Tile part = tile(item, rank);
      if (shares_ranges) {
        part.first_range = at % kRanges;
        part.end_range = min(part.first_range + end - at, kRanges);
        part.first_step = range_begin(part.first_range);
        part.end_step = range_begin(part.end_range);
      }
      at += shares_ranges ? part.end_range - part.first_range : 1;
      body(part);
    }
  }
};

}  // namespace mixlane::experts_gpu
