// What a block of experts.wgmma does, worked out by each one from the experts' row counts: its tiles of both products, and
// where in shared memory it has what it needs for them.
#pragma once

#include "ops/experts/wgmma/schedule.cuh"

namespace mixlane::experts_gpu {

// What beside the stages' weights and tokens takes shared memory.
struct OtherBytes {
  uint32_t fixed;
  uint32_t wide;       // where there are wide tiles
  uint32_t per_token;  // of the widest tile
  uint32_t per_stage, per_stage_and_token;
};

struct Plan {
  static constexpr uint32_t kMaxWarps = kMaxThreads / 32;
  Schedule products[2];
  uint32_t max_width;  // of the widest tile
  uint32_t num_stages;
  uint32_t wide_bytes;  // what wide tiles want besides; 0: there are none
  bool apart;           // no weights go to both blocks of a pair: neither needs to know of the other
  // Aligned, so that loads of several at once take in nothing else, which somebody may be writing.
  alignas(16) uint32_t warp_sums[2][kMaxWarps];
  uint32_t warp_widths[kMaxWarps];
  uint32_t warp_rows[kMaxWarps];  // most of an expert

  // By all threads of the block, once the schedules are set; they must meet before it is used.
  template <Operands kOperands>
  __device__ void make(const Slots& slots, const OtherBytes& other);
};

// Of tiles that are on the way: a stage at least is of each but the first and last of a share, whose ranges may be empty,
// and the end of a product; one more is done with its stages but not with its epilogue.
inline constexpr uint32_t kTileSlots = 2 * kMaxStages;

// Where the stages are: bytes from the beginning of shared memory.
struct RingLayout {
  uint32_t num_stages, stage_bytes;
  uint32_t first_scales, scale_bytes;  // of the stages
  uint32_t first_stage;
  bool apart;  // Plan's
};

// In front of the lists and the stages in shared memory.
struct Fixed {
  RingLayout ring;
  Plan plan;
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
  Tile tiles[kTileSlots];  // from who copies weights to who multiplies
  uint64_t handed_over[kTileSlots];
  uint32_t late;  // activated rows did not come in time
  // Of packed weights: their slots; that wide tiles begin after narrow ones.
  uint64_t decoded[kDecodedSlots], used[kDecodedSlots], wide_begins;
};

// The beginning of shared memory. By name and not by a pointer that is handed around, which the compiler takes for one to
// any memory, in two registers.
__device__ inline std::byte* shared_memory() {
  extern __shared__ __align__(1024) std::byte memory[];
  return memory;
}
__device__ inline Fixed& fixed() { return *reinterpret_cast<Fixed*>(shared_memory()); }

// Per expert, behind Fixed.
struct ExpertLists {
  uint32_t num_experts;

  __device__ uint32_t bytes() const { return 4 * num_experts * 4; }
  __device__ int32_t* counts() const { return reinterpret_cast<int32_t*>(shared_memory() + sizeof(Fixed)); }
  // Of each product; later experts of no rows have the same.
  __device__ uint32_t* first_item(uint32_t product) const {
    return reinterpret_cast<uint32_t*>(shared_memory() + sizeof(Fixed)) + (1 + product) * num_experts;
  }
  __device__ uint32_t* first_slots() const { return first_item(2); }
};

template <Operands kOperands>
__device__ void Plan::make(const Slots& slots, const OtherBytes& other) {
  const ExpertLists lists{slots.num_experts};
  constexpr uint32_t kThreads = kNumThreads<kOperands>;
  constexpr uint32_t kPerThread = (kMaxWgmmaExperts + kThreads - 1) / kThreads;
  using Wave = gpu::Wave<32>;
  const uint32_t each = (slots.num_experts + kThreads - 1) / kThreads;
  const uint32_t first = threadIdx.x * each, end = min(first + each, slots.num_experts);
  uint32_t rows[kPerThread], first_slots[kPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kPerThread; ++i) {
    rows[i] = first_slots[i] = 0;
    if (first + i < end && slots.offsets) first_slots[i] = static_cast<uint32_t>(slots.offsets[first + i]);
    if (first + i < end) rows[i] = slots.counts ? static_cast<uint32_t>(max(slots.counts[first + i], 0)) : slots.num_rows;
  }
  __syncthreads();
  uint32_t width = 8, most = 0;
  uint32_t items[2][kPerThread] = {};
  uint32_t below[2] = {};
#pragma unroll
  for (uint32_t p = 0; p < 2; ++p) {
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) {
      if (first + i >= end) break;
      items[p][i] = products[p].items(rows[i]).of(products[p].num_tiles);
      below[p] += items[p][i];
      width = max(width, products[p].widest(rows[i]));
      most = max(most, rows[i]);
    }
    below[p] = Wave::inclusive_sum(below[p]);
    if (Wave::lane() == 31) warp_sums[p][Wave::index_in_block()] = below[p];
  }
  width = __reduce_max_sync(~0u, width);
  most = __reduce_max_sync(~0u, most);
  if (Wave::lane() == 0) {
    warp_widths[Wave::index_in_block()] = width;
    warp_rows[Wave::index_in_block()] = most;
  }
  __syncthreads();
#pragma unroll
  for (uint32_t p = 0; p < 2; ++p) {
    uint32_t item = below[p];
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) item -= items[p][i];
    for (uint32_t w = 0; w < Wave::index_in_block(); ++w) item += warp_sums[p][w];
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; ++i) {
      if (first + i >= end) break;
      if (p == 0) {
        lists.counts()[first + i] = static_cast<int32_t>(rows[i]);
        lists.first_slots()[first + i] = first_slots[i];
      }
      lists.first_item(p)[first + i] = item;
      item += items[p][i];
    }
    if (threadIdx.x == kThreads - 1) products[p].num_items = item;
  }
  if (threadIdx.x == kThreads - 1) {
    for (uint32_t w = 0; w < kThreads / 32; ++w) {
      width = max(width, warp_widths[w]);
      most = max(most, warp_rows[w]);
    }
    max_width = width;
    // One narrow tile of an expert's rows each.
    apart = !is_packed(kOperands) && most <= min(products[0].narrow_tokens, products[1].narrow_tokens);
    for (Schedule& product : products) product.shares_ranges = width <= kRangeWidth && product.sharing_pays();
    wide_bytes = width > Step<kOperands>::kTokens ? other.wide : 0;
    num_stages = min((kSharedBytes - other.fixed - wide_bytes - other.per_token * width) /
                         (Step<kOperands>::stage_bytes(width) + width * other.per_stage_and_token + other.per_stage),
                     kMaxStages);
  }
}

// A block's tiles of one product, in order.
class Tiles {
 public:
  __device__ Tiles(uint32_t product, uint32_t num_experts) : product_(product), lists_{num_experts} {}

  __device__ const Schedule& schedule() const { return fixed().plan.products[product_]; }

  // body(item, first range of k, end of them). One call of it: it is large, and inlined by force, because products may not
  // cross a call.
  template <class Body>
  __device__ __forceinline__ void for_each_part(Body&& body) const {
    // Worked out anew each time: nothing but `done`, rounds or ranges, may take a register meanwhile.
    for (uint32_t done = 0;;) {
      const volatile Schedule& now = schedule();
      const uint32_t pair = unknown(blockIdx.x) / kClusterBlocks, num_pairs = Schedule::num_pairs();
      uint32_t item = 0, first = 0, count = kRanges;
      if (now.shares_ranges) {
        const uint32_t at = schedule().share_begin(pair) + done, end = schedule().share_begin(pair + 1);
        if (at >= end) break;
        item = at / kRanges;
        first = at % kRanges;
        count = min(kRanges - first, end - at);
        done += count;
      } else {
        // Neighbouring items differ in size: the shift lets all pairs have some of each.
        item = done * num_pairs + (pair + done) % num_pairs;
        if (item >= now.num_items) break;
        ++done;
      }
      body(item, first, first + count);
    }
  }

  // What block `rank` of a pair has of a part of an item.
  __device__ Tile tile(uint32_t item, uint32_t first_range, uint32_t end_range, uint32_t rank) const {
    uint32_t low = 0, high = lists_.num_experts;  // the expert is in [low, high)
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (lists_.first_item(product_)[middle] <= item)
        low = middle;
      else
        high = middle;
    }
    Tile tile;
    tile.item = item;
    tile.expert = low;
    tile.first_range = first_range;
    tile.end_range = end_range;
    tile.first_step = schedule().range_begin(first_range);
    tile.end_step = schedule().range_begin(end_range);
    schedule().place(item - lists_.first_item(product_)[low], static_cast<uint32_t>(lists_.counts()[low]), rank, tile);
    tile.slot = lists_.first_slots()[low] + tile.first_row;
    return tile;
  }

 private:
  uint32_t product_;
  ExpertLists lists_;
};

}  // namespace mixlane::experts_gpu
