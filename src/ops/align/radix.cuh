// align.radix: any number of groups. All SMs, one cooperative launch; a stable sort of (code, pair) by the code's low byte
// and then by its high byte, after which equal codes lie together and their slots follow.
//
//   sort by a digit    count      every block counts the digits of its contiguous chunk
//    (twice)           columns    a wave per digit turns the blocks' counts into sums over the blocks before
//                      scatter    every block sorts its chunk tile by tile and writes each tile as runs
//   bounds             first and last position of each code, where neighbours differ
//   plan               padded sizes summed per block of codes, then first slots of the codes
//   write              every pair from its position to its slot; pads; the rest
//
// A barrier of the grid stands between any two of these. Here a code takes 16 bits with none to spare for "no code": dropped
// pairs vanish in the first scatter.
#pragma once

#include "ops/align/outputs.cuh"
#include "ops/align/radix_tile.cuh"

namespace mixlane::align_gpu {

inline constexpr uint32_t kDropped = ~0u;

// Pairs with their codes, in some order.
struct CodedPairs {
  uint32_t* pairs;
  uint16_t* codes;
};

// The launch's global memory.
struct RadixSpace {
  uint32_t* counts;      // [kNumDigits][num_blocks]
  uint32_t* totals;      // [kNumDigits]
  uint32_t* faults;      // [num_blocks][2]: reported pairs, the first of them
  uint32_t* block_sums;  // [num_blocks]: padded slots of a block's codes
  uint32_t* starts;      // [num_codes]: first position
  uint32_t* ends;        // [num_codes]: behind the last position; starts == ends without pairs
  uint32_t* offsets;     // [num_codes + 1]: first slot, then the end
  CodedPairs by_low;     // [num_pairs]
  CodedPairs sorted;     // [num_pairs]

  __host__ __device__ static int64_t words(uint32_t num_pairs, uint32_t num_codes, uint32_t num_blocks) {
    return (int64_t{kNumDigits} + 3) * num_blocks + kNumDigits + 3 * int64_t{num_codes} + 1 + 2 * int64_t{num_pairs} +
           2 * ((int64_t{num_pairs} + 1) / 2);
  }
  __device__ RadixSpace(uint32_t* workspace, uint32_t num_pairs, uint32_t num_codes, uint32_t num_blocks) {
    const auto take = [&](int64_t words) {
      uint32_t* const taken = workspace;
      workspace += words;
      return taken;
    };
    counts = take(int64_t{kNumDigits} * num_blocks);
    totals = take(kNumDigits);
    faults = take(2 * int64_t{num_blocks});
    block_sums = take(num_blocks);
    starts = take(num_codes);
    ends = take(num_codes);
    offsets = take(int64_t{num_codes} + 1);
    by_low.pairs = take(num_pairs);
    sorted.pairs = take(num_pairs);
    by_low.codes = reinterpret_cast<uint16_t*>(take((int64_t{num_pairs} + 1) / 2));
    sorted.codes = reinterpret_cast<uint16_t*>(workspace);
  }
};

// A block's part of `count` things.
struct Share {
  uint32_t begin;
  uint32_t end;

  __device__ explicit Share(uint32_t count) {
    const uint64_t share = (uint64_t{count} + gridDim.x - 1) / gridDim.x;
    begin = static_cast<uint32_t>(min(share * blockIdx.x, uint64_t{count}));
    end = static_cast<uint32_t>(min(share * (blockIdx.x + 1), uint64_t{count}));
  }
};

// What the first sort reads: the ids.
template <bool kPlain>
struct IdItems {
  static constexpr uint32_t kShift = 0;  // of the digit in the code
  const KernelArgs& args;

  // A pair's code, or kDropped. In the counting pass dropped pairs are told to those who want to know.
  __device__ uint32_t code(uint32_t pair, Faults* faults) const {
    const PairSource& source = args.source;
    const int32_t id = load_id<kPlain>(source, pair);
    Faults unused;
    const uint32_t code = code_of<kPlain>(source, id, pair, faults ? *faults : unused);
    const bool absent = !kPlain && id == kAbsent;
    if (code != kNoCode || (source.bucket && !absent)) return code;
    if (faults && !absent && args.out.pair_slots) args.out.pair_slots[pair] = -1;
    return kDropped;
  }
  __device__ uint32_t pair(uint32_t index) const { return index; }
};

// What the second sort reads: the first one's result.
struct CodedItems {
  static constexpr uint32_t kShift = 8;
  CodedPairs items;

  __device__ uint32_t code(uint32_t index, Faults*) const { return items.codes[index]; }
  __device__ uint32_t pair(uint32_t index) const { return items.pairs[index]; }
};

// The codes and digits (kNoCode: none) of this thread's items of a tile.
template <class Tile, class Items>
__device__ void load_digits(const Items& items, uint32_t first, uint32_t end, Faults* faults,
                            uint32_t (&codes)[Tile::kItems], uint32_t (&digits)[Tile::kItems]) {
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i) {
    const uint32_t index = first + Tile::item_of(i);
    codes[i] = index < end ? items.code(index, faults) : kDropped;
  }
#pragma unroll
  for (int i = 0; i < Tile::kItems; ++i)
    digits[i] = codes[i] == kDropped ? kNoCode : codes[i] >> Items::kShift & (kNumDigits - 1);
}

template <class Tile, class Items>
__device__ void count_digits(Tile& tile, const Items& items, const Share& chunk, const RadixSpace& space) {
  if (threadIdx.x < kNumDigits) tile.totals[threadIdx.x] = 0;
  tile.clear_faults();
  __syncthreads();
  Faults faults;
  for (uint32_t first = chunk.begin; first < chunk.end; first += Tile::kPairs) {
    uint32_t codes[Tile::kItems];
    uint32_t digits[Tile::kItems];
    load_digits<Tile>(items, first, chunk.end, &faults, codes, digits);
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i)
      if (digits[i] != kNoCode) atomicAdd(tile.totals + digits[i], 1u);
  }
  tile.add_faults(faults);
  __syncthreads();
  if (threadIdx.x < kNumDigits) space.counts[threadIdx.x * gridDim.x + blockIdx.x] = tile.totals[threadIdx.x];
  if (Items::kShift == 0 && threadIdx.x == 0) {
    space.faults[2 * blockIdx.x] = tile.fault_count;
    space.faults[2 * blockIdx.x + 1] = tile.fault_first;
  }
}

// Counts become sums over the blocks before; a wave per digit. Every wave goes as many rounds: waves may be parts of the
// hardware's, whose threads shuffle together.
template <class Tile>
__device__ void sum_digit_columns(const RadixSpace& space) {
  using Wave = typename Tile::Wave;
  for (uint32_t first = 0; first < kNumDigits; first += Tile::kWaves * gridDim.x) {
    const uint32_t digit = first + Wave::index_in_block() * gridDim.x + blockIdx.x;
    const bool is_digit = digit < kNumDigits;
    uint32_t* const column = space.counts + digit * gridDim.x;
    uint32_t below = 0;
    for (uint32_t base = 0; base < gridDim.x; base += Tile::kWave) {
      const uint32_t block = base + Wave::lane();
      const bool is_count = is_digit && block < gridDim.x;
      const uint32_t count = is_count ? column[block] : 0;
      const uint32_t inclusive = Wave::inclusive_sum(count);
      if (is_count) column[block] = below + inclusive - count;
      below += Wave::shuffle(inclusive, Tile::kWave - 1);
    }
    if (is_digit && Wave::lane() == 0) space.totals[digit] = below;
  }
}

// Sorts the chunk tile by tile and writes each tile to where its digits' pairs go. `target`: where this block's first pair
// of the digit threadIdx.x goes.
template <class Tile, class Items>
__device__ void scatter_digits(Tile& tile, const Items& items, const Share& chunk, uint32_t target, const CodedPairs& to) {
  for (uint32_t first = chunk.begin; first < chunk.end; first += Tile::kPairs) {
    uint32_t codes[Tile::kItems];
    uint32_t digits[Tile::kItems];
    load_digits<Tile>(items, first, chunk.end, nullptr, codes, digits);
    tile.rank(digits);
    __syncthreads();
    const uint32_t num_staged = tile.plan(target);
    __syncthreads();

    const uint16_t* const starts = tile.counts[Tile::Wave::index_in_block()];
#pragma unroll
    for (int i = 0; i < Tile::kItems; ++i) {
      if (codes[i] == kDropped) continue;
      const uint32_t digit = codes[i] >> Items::kShift & (kNumDigits - 1);
      const uint32_t position = starts[digit] + digits[i];
      tile.entries[position] = Tile::item_of(i) | digit << 16;
      tile.codes[position] = static_cast<uint16_t>(codes[i]);
    }
    __syncthreads();

    for (uint32_t position = threadIdx.x; position < num_staged; position += Tile::kThreads) {
      const uint32_t entry = tile.entries[position];
      const uint32_t at = tile.shift[entry >> 16] + position;
      to.pairs[at] = items.pair(first + (entry & 0xffffu));
      to.codes[at] = tile.codes[position];
    }
  }
}

// Returns how many pairs have a code.
template <class Tile, class Items>
__device__ uint32_t sort_by_digit(const KernelArgs& args, Tile& tile, const Items& items, uint32_t num_items,
                                  const RadixSpace& space, const CodedPairs& to) {
  const Share chunk(num_items);
  count_digits(tile, items, chunk, space);
  gpu::grid_barrier(args.barrier);
  sum_digit_columns<Tile>(space);
  gpu::grid_barrier(args.barrier);
  const uint32_t digit = threadIdx.x;
  uint32_t target = 0;
  const uint32_t num_kept = tile.sum(digit < kNumDigits ? space.totals[digit] : 0, target);
  if (digit < kNumDigits) target += space.counts[digit * gridDim.x + blockIdx.x];
  scatter_digits(tile, items, chunk, target, to);
  gpu::grid_barrier(args.barrier);
  return num_kept;
}

// `starts` and `ends` were zero.
__device__ inline void find_bounds(const RadixSpace& space, uint32_t num_kept, uint32_t first, uint32_t step) {
  const uint16_t* const codes = space.sorted.codes;
  for (uint32_t position = first; position < num_kept; position += step) {
    const uint32_t code = codes[position];
    if (position == 0 || codes[position - 1] != code) space.starts[code] = position;
    if (position + 1 == num_kept || codes[position + 1] != code) space.ends[code] = position + 1;
  }
}

__device__ inline uint32_t padded_size(const KernelArgs& args, const RadixSpace& space, uint32_t code) {
  const uint32_t count = space.ends[code] - space.starts[code];
  return gpu::divide(count + args.by_block.divisor - 1, args.by_block) * args.by_block.divisor;
}

// First slots of all codes: each block those of its share, after telling the others how many slots that takes.
template <class Tile>
__device__ void plan_offsets(const KernelArgs& args, Tile& tile, const RadixSpace& space) {
  const Share share(args.num_codes);
  // Consecutive codes per thread.
  const uint32_t per_thread = (share.end - share.begin + Tile::kThreads - 1) / Tile::kThreads;
  const uint32_t first = min(share.begin + threadIdx.x * per_thread, share.end);
  const uint32_t last = min(first + per_thread, share.end);
  uint32_t own = 0;
  for (uint32_t code = first; code < last; ++code) own += padded_size(args, space, code);
  uint32_t below = 0;
  const uint32_t sum = tile.sum(own, below);
  if (threadIdx.x == 0) space.block_sums[blockIdx.x] = sum;
  gpu::grid_barrier(args.barrier);

  uint32_t before = 0;
  for (uint32_t block = threadIdx.x; block < blockIdx.x; block += Tile::kThreads) before += space.block_sums[block];
  uint32_t unused = 0;
  uint32_t slot = tile.sum(before, unused) + below;
  for (uint32_t code = first; code < last; ++code) {
    space.offsets[code] = slot;
    slot += padded_size(args, space, code);
  }
  // The last code's owner knows the end.
  if (first < last && last == args.num_codes) space.offsets[args.num_codes] = slot;
  gpu::grid_barrier(args.barrier);
}

__device__ inline void write_radix_pairs(const KernelArgs& args, const RadixSpace& space, uint32_t num_kept, uint32_t first,
                                         uint32_t step) {
  for (uint32_t position = first; position < num_kept; position += step) {
    const uint32_t code = space.sorted.codes[position];
    const uint32_t pair = space.sorted.pairs[position];
    const uint32_t slot = space.offsets[code] + position - space.starts[code];
    write_slot(args, slot, pair);
    if (args.out.pair_slots) args.out.pair_slots[pair] = static_cast<int32_t>(slot);
  }
}

// Pads, a wave per code; what is written per code and per block.
template <class Tile>
__device__ void write_radix_groups(const KernelArgs& args, const RadixSpace& space, uint32_t first, uint32_t step) {
  const Outputs& out = args.out;
  for (uint32_t code = first / Tile::kWave; code < args.num_codes; code += step / Tile::kWave) {
    const uint32_t end = space.offsets[code + 1];
    const uint32_t filled = space.offsets[code] + space.ends[code] - space.starts[code];
    write_pads<Tile::kWave>(args, filled + Tile::Wave::lane(), end);
  }
  const uint32_t first_code = args.source.bucket ? 1 : 0;
  for (uint32_t code = first_code + first; code <= args.num_codes; code += step) {
    if (out.expert_offsets) out.expert_offsets[code - first_code] = static_cast<int32_t>(space.offsets[code]);
    if (out.expert_counts && code < args.num_codes)
      out.expert_counts[code - first_code] = static_cast<int32_t>(space.ends[code] - space.starts[code]);
  }
  const uint32_t num_slots = space.offsets[args.num_codes];
  for (uint32_t block = first; block < out.num_blocks; block += step) {
    const uint64_t slot = uint64_t{block} * args.by_block.divisor;
    uint32_t code[1] = {};
    if (slot < num_slots) find_codes(space.offsets, args.num_codes, {static_cast<uint32_t>(slot)}, code);
    out.block_experts[block] = slot < num_slots ? static_cast<int32_t>(code[0] - first_code) : -1;
  }
}

// By one block.
template <class Tile>
__device__ void write_radix_summary(const KernelArgs& args, Tile& tile, const RadixSpace& space, uint32_t num_kept) {
  tile.clear_faults();
  __syncthreads();
  for (uint32_t block = threadIdx.x; block < gridDim.x; block += Tile::kThreads)
    tile.add_faults({space.faults[2 * block], space.faults[2 * block + 1]});
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint32_t in_bucket = args.source.bucket ? space.ends[0] - space.starts[0] : 0;
  args.out.num_padded[0] = static_cast<int32_t>(space.offsets[args.num_codes]);
  args.out.num_padded[1] = static_cast<int32_t>(num_kept - in_bucket);
  report_faults(args, tile.fault_count, tile.fault_first);
}

template <class Tile, bool kPlain>
__global__ void __launch_bounds__(Tile::kThreads, 1024 / Tile::kThreads)
    align_radix(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  __shared__ Tile tile;
  const RadixSpace space(args.workspace, args.source.num_pairs, args.num_codes, gridDim.x);
  const uint32_t first = blockIdx.x * Tile::kThreads + threadIdx.x;
  const uint32_t step = gridDim.x * Tile::kThreads;
  for (uint32_t code = first; code < args.num_codes; code += step) space.starts[code] = space.ends[code] = 0;

  uint32_t num_kept = count_pairs(args.source);
  num_kept = sort_by_digit(args, tile, IdItems<kPlain>{args}, num_kept, space, space.by_low);
  sort_by_digit(args, tile, CodedItems{space.by_low}, num_kept, space, space.sorted);
  find_bounds(space, num_kept, first, step);
  gpu::grid_barrier(args.barrier);
  plan_offsets(args, tile, space);

  write_radix_pairs(args, space, num_kept, first, step);
  write_radix_groups<Tile>(args, space, first, step);
  if (blockIdx.x == gridDim.x - 1) write_radix_summary(args, tile, space, num_kept);
  fill_zeros(args, first, step);
}

}  // namespace mixlane::align_gpu
