// The tiles of a product in experts.wgmma: which there are for an expert of so many rows, and in which order.
//
// A tile is kTileRows rows of one expert's weights times some of its rows: narrow (few rows; the weights are the left
// operand, and the width of the product is the number of rows) or wide (up to kWideTokens rows, which are the left operand).
// A pair of blocks (a cluster) takes two tiles at a time, an item: two neighbouring tiles of weights for the same rows, or
// the same weights for two tiles of rows, so that each block loads half of the weights for both. An expert's rows are as
// many full pairs of tiles as there are, and what remains.
#pragma once

#include "gpu/device.hpp"
#include "ops/experts/wgmma/args.hpp"

namespace mixlane::experts_gpu {

inline constexpr uint32_t kNumGroups = 2;  // warpgroups that multiply, 128 rows of the tile each
inline constexpr uint32_t kTileRows = 256;
inline constexpr uint32_t kMaxTokens = 128;
inline constexpr uint32_t kWideTokens = 128;
inline constexpr uint32_t kClusterBlocks = 2;
inline constexpr uint32_t kMaxStages = 8;
inline constexpr uint32_t kDecodedSlots = 2;
inline constexpr uint32_t kSharedBytes = 227 * 1024;
inline constexpr uint32_t kMaxThreads = 512;

__host__ __device__ constexpr uint32_t round_up(uint32_t value, uint32_t to) { return (value + to - 1) / to * to; }

// A value that the compiler takes for another one each time, so that what follows from it is worked out where it is needed
// and not kept in registers over all stages or tiles.
__device__ inline uint32_t unknown(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <class Value>
__device__ inline Value* unknown(Value* value) {
  asm volatile("" : "+l"(value));
  return value;
}

// Widths that narrow products come in: 8, 16, 24, 32, 48, 64, 72, 80, 96, 128, 144, 160.
__device__ inline uint32_t product_width(uint32_t tokens) {
  if (tokens > 128) return round_up(tokens, 16);
  if (tokens > 96) return 128;
  if (tokens > 80) return 96;
  return max(round_up(tokens, tokens <= 32 || (tokens > 64 && tokens <= 72) ? 8 : 16), 8u);
}

// Sums of tiles of at most kRangeWidth tokens are made range by range of k and then added up in order. Where all tiles are
// such, blocks may get equal shares of all ranges: a tile may be of several blocks, and the bits don't tell.
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
  bool follows_narrow = false;  // of packed weights: a wide tile of which the block's one before is none
  uint32_t item = 0;
  uint32_t slot = 0;                              // of the first row
  uint32_t first_range = 0, end_range = kRanges;  // of k
  uint32_t first_step = 0, end_step = 0;
};

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

// Warpgroups: one of producers, kNumGroups that multiply, and where weights are packed one that decodes them.
template <Operands kOperands>
inline constexpr uint32_t kNumThreads = (1 + kNumGroups + (is_packed(kOperands) ? 1 : 0)) * 128;

// What a stage holds of k. Of packed e2m1 weights it is the codes, a row of 64 bytes where bf16 tokens take two of 128 and
// e4m3 ones one.
template <Operands kOperands>
struct Step {
  static constexpr bool kPacked = is_packed(kOperands);
  static constexpr uint32_t kTokenValueBytes = kOperands == Operands::bf16 || kOperands == Operands::e2m1 ? 2 : 1;
  static constexpr uint32_t kWeightRowBytes = kPacked ? 64 : 128;
  static constexpr uint32_t kTokenRows = kOperands == Operands::e2m1 ? 2 : 1;  // of 128 bytes, per token
  static constexpr uint32_t kDepth = kTokenRows * 128 / kTokenValueBytes;
  static constexpr uint32_t kWeightBytes = kTileRows * kWeightRowBytes;

  // Most rows of a narrow tile. Wide ones take over where they are faster; e4m3's sums, products and scales share the
  // registers besides.
  static constexpr uint32_t kTokens = kOperands == Operands::bf16 ? 96 : 64;
  // Narrow tiles may be longer than wide ones: a few rows too many do not become tiles of their own.
  static constexpr uint32_t kMaxTokens = kOperands == Operands::bf16 ? 160 : 128;

  __host__ __device__ static uint32_t num_steps(uint32_t depth) { return (depth + kDepth - 1) / kDepth; }
  // Of the tokens of one row of 128 bytes each, at most `width` of them.
  __device__ static uint32_t token_bytes(uint32_t width) { return round_up(width, 16) * 128; }
  __device__ static uint32_t stage_bytes(uint32_t width) { return kWeightBytes + kTokenRows * token_bytes(width); }
};

// The tiles of one product, without the lists: those are in ExpertLists.
struct Schedule {
  uint32_t num_items = 0;
  uint32_t num_tiles = 0;      // of an expert's weights; 0: the product is not made
  uint32_t narrow_tokens = 0;  // most rows of a narrow tile
  uint32_t tile_tokens = 0;    // of a full tile, a power of two
  uint32_t pair_shift = 0;     // two of these are 1 << pair_shift
  uint32_t long_tokens = 0;    // most rows of a remaining one
  uint32_t least_width = 0;    // of a narrow tile
  uint32_t num_steps = 0;      // of k
  bool splits = false;         // rows for a full tile and a narrow one: one after the other, not side by side
  bool shares_ranges = false;  // a pair of blocks has a share of all items' ranges, not whole items

  template <Operands kOperands>
  __device__ void set(bool has_wide, bool batch_invariant, uint32_t depth, uint32_t num_weight_tiles) {
    num_tiles = num_weight_tiles;
    num_steps = Step<kOperands>::num_steps(depth);
    // Narrow and wide tiles of e2m1 weights and bf16 tokens have sums of different orders.
    narrow_tokens = kOperands == Operands::e2m1 && batch_invariant ? 0 : Step<kOperands>::kTokens;
    const auto tokens_log2 = 31 - static_cast<uint32_t>(__clz(static_cast<int>(has_wide ? kWideTokens : narrow_tokens)));
    tile_tokens = 1u << tokens_log2;
    pair_shift = tokens_log2 + 1;
    long_tokens = has_wide ? Step<kOperands>::kMaxTokens : narrow_tokens;
    splits = has_wide && kOperands != Operands::bf16;
    // Up to kRangeWidth sums are made in ranges of k or several chains: the only tiles in which the order is another one.
    least_width = batch_invariant ? kRangeWidth + 8 : 8;
  }

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
    items.full = count >> pair_shift;
    items.remaining = count - (items.full << pair_shift);
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
    return is_wide(tokens) ? kWideTokens : narrow_width(tokens);
  }
  __device__ uint32_t narrow_width(uint32_t tokens) const { return max(product_width(tokens), least_width); }
  __device__ bool is_wide(uint32_t tokens) const { return tokens > narrow_tokens && tokens <= tile_tokens; }
  // Side by side both tiles would cost what full ones cost.
  __device__ bool splits_remaining(const Items& all) const {
    return splits && all.more == 2 && all.remaining <= tile_tokens + narrow_tokens;
  }

  // Tiles with rows that an expert of so many rows has.
  __device__ uint32_t tiles_of(uint32_t count) const { return num_tiles * items(count).per_two(); }

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
    tile.width = tile.wide ? round_up(tokens, 16) : narrow_width(tokens);
    tile.first_row += part * tokens;
    if (tile.index < num_tiles && tile.first_row < count) tile.num_rows = min(tokens, count - tile.first_row);
  }

  __device__ static uint32_t num_pairs() { return gridDim.x / kClusterBlocks; }
  // Whether equal shares of all ranges are worth what they cost: to hand sums over takes about as long as kHandOver stages.
  // Whole tiles cost the part of a last round in which some pairs have none; as the others then get their weights faster,
  // a fifth of that time.
  __device__ bool sharing_pays() const {
    constexpr uint32_t kHandOver = 5, kLoss = 5;
    const uint32_t idle = (num_pairs() - num_items % num_pairs()) % num_pairs();
    return idle * num_steps > kHandOver * kLoss * num_pairs();
  }
  // Where a pair's share of all ranges begins; range r of item i is number i * kRanges + r.
  __device__ uint32_t share_begin(uint32_t pair) const { return pair * (num_items * kRanges) / num_pairs(); }
  __device__ uint32_t pair_of_range(uint32_t number) const {
    return ((number + 1) * num_pairs() - 1) / (num_items * kRanges);
  }
};

}  // namespace mixlane::experts_gpu
