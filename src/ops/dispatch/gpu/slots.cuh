// Which ranks a token's row goes to, and in which slot of their windows: prefix sums in token order, found by every
// block for itself from the ids of the tokens before its own.
#pragma once

#include "ops/dispatch/gpu/call.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kMaxWaves = kMaxThreads / kWave;

// Of a contiguous placement.
__device__ inline uint32_t owner_of(const ExpertOwners& owners, uint32_t expert) {
  const bool large = expert < owners.larger_end;
  const uint32_t number = large ? expert : expert - owners.larger_end;
  const uint32_t magic = large ? owners.by_larger.magic : owners.by_smaller.magic;
  const uint32_t shift = large ? owners.by_larger.shift : owners.by_smaller.shift;
  return (large ? 0 : owners.num_larger) + ((__umulhi(number, magic) + number) >> shift);
}

inline constexpr uint32_t kBadId = 1u << 31;

// Bit per rank that owns one of these experts, and kBadId.
template <int kTogether>
__device__ inline uint32_t ranks_of_ids(const int32_t* ids, uint32_t num_topk, const uint8_t* table,
                                        const ExpertOwners& owners) {
  uint32_t ranks = 0;
#pragma unroll kTogether
  for (uint32_t k = 0; k < num_topk; ++k) {
    const int32_t id = ids[k];
    const auto expert = static_cast<uint32_t>(id);
    const bool good = expert < owners.num_experts;
    const uint32_t rank = !good ? 0 : table ? table[expert] : owner_of(owners, expert);
    ranks |= good ? 1u << rank : id != -1 ? kBadId : 0u;
  }
  return ranks;
}

static __device__ __noinline__ uint32_t ranks_of_any(const int32_t* ids, uint32_t num_topk, const uint8_t* table,
                                                     const ExpertOwners& owners) {
  return ranks_of_ids<4>(ids, num_topk, table, owners);
}

// The usual: eight ids per token, fetched before anything else that a block needs, since its slots depend on them.
struct PlainIds {
  uint4 low;
  uint4 high;
  __device__ static PlainIds of(const DispatchKernelArgs& args, uint32_t token) {
    const auto* const fours = reinterpret_cast<const uint4*>(args.ids) + int64_t{token} * 2;
    return {fours[0], fours[1]};
  }
  // None if not `wanted`, without a branch.
  __device__ static PlainIds of(const DispatchKernelArgs& args, uint32_t token, bool wanted) {
    const auto* const fours = reinterpret_cast<const uint4*>(args.ids) + int64_t{token} * 2;
    const uint4 none = make_uint4(~0u, ~0u, ~0u, ~0u);
    return {gpu::load_if(wanted, fours, none), gpu::load_if(wanted, fours + 1, none)};
  }
};

// `kTellsBad`: kBadId too. Slots do not need it.
template <bool kTellsBad = true>
__device__ inline uint32_t ranks_of(uint32_t num_experts, const gpu::Divider& each, const PlainIds& ids) {
  uint32_t ranks = 0;
#pragma unroll
  for (const uint32_t id : {ids.low.x, ids.low.y, ids.low.z, ids.low.w, ids.high.x, ids.high.y, ids.high.z, ids.high.w}) {
    const bool good = id < num_experts;
    const uint32_t bit = 1u << (gpu::divide(id, each) & 31u);
    ranks |= good ? bit : kTellsBad && id != ~0u ? kBadId : 0u;
  }
  return ranks;
}
template <bool kTellsBad = true>
__device__ inline uint32_t ranks_of(const DispatchKernelArgs& args, const PlainIds& ids) {
  return ranks_of<kTellsBad>(args.owners.num_experts, args.owners.by_smaller, ids);
}

// Bit per rank that owns one of a token's experts. What is usual is short code in place: fetching it takes longer than
// running it.
__device__ inline uint32_t ranks_of(const DispatchKernelArgs& args, uint32_t token) {
  if (args.plain_ids) return ranks_of(args, PlainIds::of(args, token));
  return ranks_of_any(args.ids + int64_t{token} * args.num_topk, args.num_topk, args.owners.table, args.owners);
}

// A token whose ids are fetched, or none.
struct FetchedToken {
  PlainIds ids;
  uint32_t token;
  __device__ FetchedToken() : FetchedToken(~0u) {}
  __device__ explicit FetchedToken(uint32_t which)
      : ids{make_uint4(~0u, ~0u, ~0u, ~0u), make_uint4(~0u, ~0u, ~0u, ~0u)}, token(which) {}
  __device__ FetchedToken(const DispatchKernelArgs& args, uint32_t which, bool counts)
      : ids(PlainIds::of(args, which, counts && args.plain_ids)), token(counts ? which : ~0u) {}
  // In two steps: no branch before other results, like those of the first one, are looked at.
  __device__ uint32_t plain_ranks(const DispatchKernelArgs& args) const { return ranks_of<false>(args, ids); }
  __device__ uint32_t ranks(const DispatchKernelArgs& args, uint32_t plain_ranks) const {
    return args.plain_ids || token == ~0u ? plain_ranks : ranks_of(args, token);
  }
  __device__ uint32_t ranks(const DispatchKernelArgs& args) const { return ranks(args, plain_ranks(args)); }
};

// Lane r: how many of the wave's tokens go to rank r.
__device__ inline uint32_t count_by_rank(uint32_t ranks, int num_ranks) {
  uint32_t mine = 0;
#pragma unroll 1
  for (int r = 0; r < num_ranks; ++r) {
    const auto having = static_cast<uint32_t>(HardwareWave::count(HardwareWave::ballot((ranks >> r & 1u) != 0)));
    if (static_cast<int>(HardwareWave::lane()) == r) mine = having;
  }
  return mine;
}

// The same as bits: lane r's are the wave's tokens that go to rank r.
__device__ inline HardwareWave::Mask tokens_by_rank(const DispatchKernelArgs& args, uint32_t ranks) {
  HardwareWave::Mask mine = 0;
#pragma unroll 1
  for (int r = 0; r < args.exchange.window.num_ranks; ++r) {
    const auto all = HardwareWave::ballot((ranks >> r & 1u) != 0);
    if (static_cast<int>(HardwareWave::lane()) == r) mine = all;
  }
  return mine;
}

// A batch of a block's rows, one per lane of the first wave.
struct Batch {
  std::byte* target[kWave][kMaxRanks];  // the records that a row goes to, the own rank's last
  uint32_t num_targets[kWave];
  uint32_t rows[kMaxRanks];  // for each rank, up to the end of the batch, those without room not among them
};

// Counts the tokens [0, end) by rank, the waves but the first: lane r's count for rank r goes to `counts` of its wave.
// `fetched`: the lane's first one of them.
__device__ inline void count_before(const DispatchKernelArgs& args, uint32_t end, const FetchedToken& fetched,
                                    uint32_t (&counts)[kMaxWaves][kMaxRanks]) {
  const uint32_t wave = HardwareWave::index_in_block(), lane = HardwareWave::lane();
  const int num_ranks = args.exchange.window.num_ranks;
  uint32_t count = (wave - 1) * kWave < end ? count_by_rank(fetched.ranks(args), num_ranks) : 0;
#pragma unroll 1
  for (uint32_t first = (wave - 1) * kWave + blockDim.x - kWave; first < end; first += blockDim.x - kWave)
    count += count_by_rank(first + lane < end ? ranks_of(args, first + lane) : 0, num_ranks);
  if (lane < kMaxRanks) counts[wave][lane] = count;
}

// Lane r: the first of the records that are this rank's in rank r's window.
__device__ inline std::byte* own_records(const Window& window) {
  const int rank = static_cast<int>(HardwareWave::lane());
  return rank < window.num_ranks ? record_at(window, rank, window.rank, 0) : nullptr;
}

// The first wave: slots for the tokens that the lanes stand for, whose ranks are given. Lane r's `next` is rank r's next
// slot. Returns the lane's slots, a byte of 0xff per rank without a row, as their distances from `next` before the batch.
__device__ inline uint64_t take_slots(const DispatchKernelArgs& args, const Call& call, uint32_t ranks, std::byte* records,
                                      uint32_t& next, Batch& batch) {
  const Window& window = args.exchange.window;
  const int lane = static_cast<int>(HardwareWave::lane());
  const auto capacity = static_cast<uint32_t>(window.capacity);
  uint32_t num_targets = 0;
  uint64_t distances = ~uint64_t{0};
#pragma unroll 1
  for (int i = 1; i <= window.num_ranks; ++i) {
    const int r = window.rank + i < window.num_ranks ? window.rank + i : window.rank + i - window.num_ranks;
    const bool wanted = (ranks >> r & 1u) != 0;
    const auto having = HardwareWave::ballot(wanted);
    const auto below = static_cast<uint32_t>(HardwareWave::count(having & HardwareWave::lanes_below()));
    const uint32_t slot = HardwareWave::shuffle(next, r) + below;
    auto* const first =
        reinterpret_cast<std::byte*>(HardwareWave::shuffle(reinterpret_cast<unsigned long long>(records), r));
    if (wanted && slot < capacity && call.sends_to(r)) {
      batch.target[lane][num_targets++] = first + slot * window.record_stride;
      distances ^= static_cast<uint64_t>(0xffu ^ below) << (8 * r);
    }
    if (lane == r) next += static_cast<uint32_t>(HardwareWave::count(having));
  }
  batch.num_targets[lane] = num_targets;
  if (lane < kMaxRanks) batch.rows[lane] = min(next, capacity);
  return distances;
}

// The first wave: those slots, for combine.
__device__ inline void keep_slots(const DispatchKernelArgs& args, uint32_t token, bool counts, uint64_t distances,
                                  uint32_t before) {
  const int num_ranks = args.exchange.window.num_ranks;
  int32_t* const kept = args.exchange.routing.slots + int64_t{token} * num_ranks;
#pragma unroll 1
  for (int r = 0; r < num_ranks; ++r) {
    const uint32_t first = HardwareWave::shuffle(before, r);
    const auto distance = static_cast<uint32_t>(distances >> (8 * r) & 0xffu);
    if (counts) kept[r] = distance == 0xff ? -1 : static_cast<int32_t>(first + distance);
  }
}

}  // namespace mixlane::exchange_gpu
