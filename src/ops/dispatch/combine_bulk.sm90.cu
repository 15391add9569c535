// combine.throughput of sm_90 for rows that are reduced before and go as they are: in every block one thread pushes rows by
// bulk copies, another one fetches the partial sums that have come into shared memory, and most waves add up from there.
#include <algorithm>

#include "gpu/launch.hpp"
#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/launchers.hpp"
#include "ops/dispatch/ring.cuh"

namespace mixlane::exchange_gpu {
namespace {

// What the waves of a block do.
constexpr uint32_t kAddingWaves = 14;  // 7168 values are twice their octets
constexpr uint32_t kAddingThreads = kAddingWaves * kWave;
constexpr uint32_t kFetchWave = kAddingWaves;
constexpr uint32_t kLoadWave = kFetchWave + 1;
constexpr uint32_t kStoreWave = kLoadWave + 1;
constexpr uint32_t kFlagWave = kStoreWave + 1;
constexpr uint32_t kThreads = (kFlagWave + 1) * kWave;

constexpr int64_t kSharedBytes = 210 * 1024;
constexpr int64_t kPushBytes = 90 * 1024;  // for rows on their way to their owners, of which two must fit
constexpr uint32_t kMaxRows = 14;
constexpr uint32_t kMinPieces = 4, kMaxPieces = 8;
constexpr uint32_t kMaxGroup = 4;   // rows flagged together
constexpr uint32_t kMaxTokens = 8;  // taken at once
constexpr uint32_t kTaken = 2;      // groups of rows that are being pushed
constexpr uint32_t kFlagged = 4;    // groups whose stores are under way
constexpr uint32_t kNoPiece = ~0u;

// How shared memory is divided.
struct Rings {
  uint32_t row_bytes;
  uint32_t num_rows;     // on their way to their owners
  uint32_t num_parts;    // what is added up at once is a part of a token's rows
  uint32_t piece_bytes;  // most of one rank's part
  uint32_t num_pieces;   // parts of tokens, of all ranks
};

// The partial sums of `count` ranks, piece_bytes apart.
struct Piece {
  uint32_t token;
  uint32_t part;
  uint32_t count;
};

struct BulkShared {
  uint64_t row_full[kMaxRows];
  uint64_t row_empty[kMaxRows];
  uint64_t taken_full[kTaken];
  uint64_t taken_empty[kTaken];
  uint64_t piece_full[kMaxPieces];
  uint64_t piece_empty[kMaxPieces];
  Piece piece[kMaxPieces];
  uint32_t taken[kTaken];     // groups of rows
  uint32_t stored[kFlagged];  // groups
  uint32_t num_arrived;       // groups whose stores are known to be done
  uint32_t num_flagged;
  bool all_arrived;
  uint32_t masked;
};

__device__ inline bool leads() { return HardwareWave::lane() == 0; }

// Consecutive things that are taken in groups by whoever is free: multiprocessors have different shares of the link.
struct Groups {
  uint32_t total;
  uint32_t size;  // of a group
  uint32_t count;
  __device__ Groups(uint32_t num, uint32_t group) : total(num), size(group), count((num + group - 1) / group) {}
  __device__ uint32_t begin(uint32_t group) const { return group * size; }
  __device__ uint32_t end(uint32_t group) const { return min((group + 1) * size, total); }
  // The next one after the first, which is blockIdx.x; lane 0's answer.
  __device__ static uint32_t take(uint32_t* counter) {
    uint32_t group = 0;
    if (leads()) group = gridDim.x + atomicAdd(counter, 1u);
    return group;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Rows to their owners

// Groups of rows share a flag's way across the link. Few rows are announced one by one, so that their owners need not wait
// for others.
__device__ inline Groups pushed_groups(uint32_t num_rows) {
  const uint32_t each = num_rows / gridDim.x;
  return {num_rows, each >= 24 ? kMaxGroup : each >= 8 ? 2u : 1u};
}

class Pusher {
 public:
  __device__ Pusher(const CombineKernelArgs& args, const Call& call, const ReceivedRange& range, const Rings& rings,
                    std::byte* stages, BulkShared& shared)
      : args_(args),
        call_(call),
        range_(range),
        rings_(rings),
        groups_(pushed_groups(range.total())),
        stages_(stages),
        shared_(shared) {}

  // Takes groups, and loads their rows.
  __device__ void load(uint32_t* counter) {
    const int64_t capacity = args_.exchange.window.capacity;
    Turn turn, taken;
    uint32_t next = blockIdx.x;
    for (;; taken.next(kTaken)) {
      const uint32_t group = HardwareWave::shuffle(next, 0);
      if (leads()) {
        if (taken.round != 0) gpu::ptx::mbarrier_wait(shared_.taken_empty + taken.stage, (taken.round - 1) & 1u);
        shared_.taken[taken.stage] = group;
        gpu::ptx::mbarrier_arrive(shared_.taken_full + taken.stage);
      }
      if (group >= groups_.count) return;
      next = Groups::take(counter);
      if (args_.exchange.jitter_ns != 0) spin_a_little(args_.exchange, call_.number + 7919 * group);
#pragma unroll 1
      for (uint32_t row = groups_.begin(group); row < groups_.end(group); ++row, turn.next(rings_.num_rows)) {
        int owner = 0, slot = 0;
        range_.find(row, owner, slot);
        if (!leads()) continue;
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.row_empty + turn.stage, (turn.round - 1) & 1u);
        gpu::ptx::bulk_load(stage(turn), args_.rows.data + (owner * capacity + slot) * args_.rows.stride, rings_.row_bytes,
                            shared_.row_full + turn.stage);
      }
      HardwareWave::sync();
    }
  }

  __device__ void store() {
    const Window& window = args_.exchange.window;
    Turn turn, freed, taken;
    uint32_t num_stored = 0, num_groups = 0;
    for (;; taken.next(kTaken)) {
      gpu::ptx::mbarrier_wait(shared_.taken_full + taken.stage, taken.round & 1u);
      const uint32_t group = shared_.taken[taken.stage];
      if (group >= groups_.count) break;
#pragma unroll 1
      for (uint32_t row = groups_.begin(group); row < groups_.end(group); ++row, turn.next(rings_.num_rows)) {
        int owner = 0, slot = 0;
        range_.find(row, owner, slot);
        if (!leads()) continue;
        gpu::ptx::mbarrier_wait(shared_.row_full + turn.stage, turn.round & 1u);
        gpu::ptx::bulk_store(partial_at(window, owner, window.rank, slot), stage(turn), rings_.row_bytes);
        gpu::ptx::end_store_group();
        gpu::ptx::wait_until_read<1>();
        if (++num_stored == 1) continue;
        gpu::ptx::mbarrier_arrive(shared_.row_empty + freed.stage);
        freed.next(rings_.num_rows);
      }
      if (leads()) {
        while (num_groups - *static_cast<volatile uint32_t*>(&shared_.num_flagged) >= kFlagged) {
        }
        shared_.stored[num_groups % kFlagged] = group;
        // The group before: by now its stores have arrived. Behind a smaller one, the last of all, nothing comes.
        if (groups_.end(group) - groups_.begin(group) == groups_.size) {
          if (groups_.size == 4)
            say_arrived<4>(num_groups);
          else if (groups_.size == 2)
            say_arrived<2>(num_groups);
          else
            say_arrived<1>(num_groups);
        }
        ++num_groups;
        gpu::ptx::mbarrier_arrive(shared_.taken_empty + taken.stage);
      }
      HardwareWave::sync();
    }
    if (!leads()) return;
    say_arrived<0>(num_groups);
    *static_cast<volatile bool*>(&shared_.all_arrived) = true;
  }

  // A wave of its own: making sure that an owner that sees the flag sees the row takes a while.
  __device__ void flag() {
    const Window& window = args_.exchange.window;
    // Lanes are words of the group's flags.
    const uint32_t which = HardwareWave::lane() / kRowParts, word = HardwareWave::lane() % kRowParts;
    uint32_t flagged = 0;
    bool all = false;
    do {
      uint32_t arrived = 0;
      do {
        all = *static_cast<volatile bool*>(&shared_.all_arrived);
        __threadfence_block();
        arrived = *static_cast<volatile uint32_t*>(&shared_.num_arrived);
        all = HardwareWave::shuffle(static_cast<int>(all), 0) != 0;
        arrived = HardwareWave::shuffle(arrived, 0);
      } while (arrived == flagged && !all);
      gpu::ptx::fence_async_proxy();
      __threadfence_system();
      for (; flagged != arrived; ++flagged) {
        const uint32_t group = shared_.stored[flagged % kFlagged], first = groups_.begin(group);
        uint32_t* flag = nullptr;
        for (uint32_t row = first; row < groups_.end(group); ++row) {
          int owner = 0, slot = 0;
          range_.find(row, owner, slot);
          if (which == row - first) flag = row_flag(window, owner, window.rank, slot) + word;
        }
        if (flag != nullptr) gpu::store_relaxed<Scope::system>(flag, call_.epoch);
      }
      HardwareWave::sync();
      *static_cast<volatile uint32_t*>(&shared_.num_flagged) = flagged;
    } while (!all);
  }

 private:
  __device__ std::byte* stage(const Turn& turn) const { return stages_ + int64_t{turn.stage} * rings_.row_bytes; }

  // One thread: the stores of so many groups are done, all but those of the kNewer latest rows.
  template <int kNewer>
  __device__ void say_arrived(uint32_t num_groups) {
    gpu::ptx::wait_for_stores<kNewer>();
    __threadfence_block();
    *static_cast<volatile uint32_t*>(&shared_.num_arrived) = num_groups;
  }

  const CombineKernelArgs& args_;
  const Call& call_;
  const ReceivedRange& range_;
  const Rings& rings_;
  Groups groups_;
  std::byte* stages_;
  BulkShared& shared_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Adding up

// The first octet of a part of a row.
__device__ inline uint32_t part_begin(const CombineKernelArgs& args, const Rings& rings, uint32_t part) {
  return args.num_octets * part / rings.num_parts;
}

// Takes tokens, looks for the flags of several tokens' rows at once, a lane for each rank of each token, and fetches the
// rows of those that are complete in their order. A whole wave.
class Fetcher {
 public:
  __device__ Fetcher(const CombineKernelArgs& args, const Call& call, const Rings& rings, uint32_t octet_bytes,
                     std::byte* stages, BulkShared& shared)
      : args_(args), call_(call), rings_(rings), octet_bytes_(octet_bytes), stages_(stages), shared_(shared) {
    while (1 << log2_lanes_ < args.exchange.window.num_ranks) ++log2_lanes_;
    rank_ = static_cast<int>(HardwareWave::lane() & ((1u << log2_lanes_) - 1));
  }

  __device__ void fetch(uint32_t num_tokens, uint32_t* counter) {
    const uint32_t most = min(kWave >> log2_lanes_, kMaxTokens);
    const Groups groups(num_tokens, max(min((num_tokens + gridDim.x - 1) / gridDim.x, most), 1u));
    uint32_t group = blockIdx.x;
    while (group < groups.count) {
      const uint32_t next = Groups::take(counter);
      const uint32_t token = groups.begin(group) + (HardwareWave::lane() >> log2_lanes_);
      fetch_group(token, groups.end(group), groups.end(group) - groups.begin(group));
      group = HardwareWave::shuffle(next, 0);
    }
    // Nothing comes any more.
    if (!leads()) return;
    wait_until_empty();
    shared_.piece[turn_.stage].count = kNoPiece;
    gpu::ptx::mbarrier_arrive(shared_.piece_full + turn_.stage);
  }

 private:
  // `token`: this lane's, if it is before `end`, of `count` in the wave.
  __device__ void fetch_group(uint32_t token, uint32_t end, uint32_t count) {
    const Exchange& exchange = args_.exchange;
    const Window& window = exchange.window;
    const bool counts = token < end && rank_ < window.num_ranks;
    const int slot = counts ? exchange.routing.slots[int64_t{token} * window.num_ranks + rank_] : -1;
    const uint32_t masked = *static_cast<volatile uint32_t*>(&shared_.masked);
    const std::byte* from = nullptr;
    const gpu::Packet* flag = nullptr;
    if (slot >= 0 && (masked >> rank_ & 1u) == 0) {
      const bool own = rank_ == window.rank;
      from = own ? args_.rows.data + (int64_t{rank_} * window.capacity + slot) * args_.rows.stride
                 : partial_at(window, window.rank, rank_, slot);
      if (!own) flag = reinterpret_cast<const gpu::Packet*>(row_flag(window, window.rank, rank_, slot));
    }
    uint64_t since = 0;
    uint32_t num_fetched = 0;
#pragma unroll 1
    for (uint32_t looks = 1; num_fetched < count; ++looks) {
      if (flag != nullptr) {
        const gpu::Packet words = gpu::load_packet_system(flag);
        uint32_t stale = call_.epoch;
        for (const uint32_t word : words.words) stale = word != call_.epoch ? word : stale;
        if (stale == call_.epoch) {
          flag = nullptr;
        } else if (looks % 64 == 0 && !keep_waiting(exchange, rank_, call_.epoch, stale, since)) {
          atomicOr(&shared_.masked, 1u << rank_);
          flag = nullptr;
          from = nullptr;
        }
      }
      const auto waiting = HardwareWave::ballot(flag != nullptr);
      const uint32_t complete =
          waiting == 0 ? count : min(static_cast<uint32_t>(__ffs(static_cast<int>(waiting)) - 1) >> log2_lanes_, count);
      if (complete == num_fetched) continue;
      __threadfence_system();
      gpu::ptx::fence_async_proxy();
      for (; num_fetched < complete; ++num_fetched) fetch_token(num_fetched, token, from);
    }
  }

  // The pieces of the token whose lanes are number `which` of the wave.
  __device__ void fetch_token(uint32_t which, uint32_t token, const std::byte* from) {
    const bool mine = HardwareWave::lane() >> log2_lanes_ == which;
    const auto having = HardwareWave::ballot(mine && from != nullptr);
    const auto index = static_cast<uint32_t>(HardwareWave::count(having & HardwareWave::lanes_below()));
    const auto num_rows = static_cast<uint32_t>(HardwareWave::count(having));
#pragma unroll 1
    for (uint32_t part = 0; part < rings_.num_parts; ++part, turn_.next(rings_.num_pieces)) {
      const uint32_t begin = part_begin(args_, rings_, part) * octet_bytes_;
      const uint32_t bytes = part_begin(args_, rings_, part + 1) * octet_bytes_ - begin;
      uint64_t* const full = shared_.piece_full + turn_.stage;
      if (mine && rank_ == 0) {
        wait_until_empty();
        shared_.piece[turn_.stage] = {token, part, num_rows};
        gpu::ptx::mbarrier_arrive_expect(full, num_rows * bytes);
      }
      HardwareWave::sync();
      if (mine && from != nullptr) {
        std::byte* const to =
            stages_ + (int64_t{turn_.stage} * args_.exchange.window.num_ranks + index) * rings_.piece_bytes;
        gpu::ptx::bulk_load_expected(to, from + begin, bytes, full);
      }
    }
  }
  __device__ void wait_until_empty() const {
    if (turn_.round != 0) gpu::ptx::mbarrier_wait(shared_.piece_empty + turn_.stage, (turn_.round - 1) & 1u);
  }

  const CombineKernelArgs& args_;
  const Call& call_;
  const Rings& rings_;
  uint32_t octet_bytes_;
  std::byte* stages_;
  BulkShared& shared_;
  uint32_t log2_lanes_ = 0;  // of a token
  int rank_;
  Turn turn_;
};

// All adding waves: from shared memory, in rank order. kCount: the number of rows if it is known, else 0.
template <CombineWire kWire, uint32_t kCount>
__device__ void add_up_piece(const CombineKernelArgs& args, const Rings& rings, const Piece& piece, const std::byte* rows) {
  using Wire = WireOctet<kWire>;
  const uint32_t begin = part_begin(args, rings, piece.part), end = part_begin(args, rings, piece.part + 1);
  const uint32_t count = kCount != 0 ? kCount : piece.count;
#pragma unroll 2
  for (uint32_t octet = begin + threadIdx.x; octet < end; octet += kAddingThreads) {
    const std::byte* const from = rows + int64_t{octet - begin} * Wire::kBytes;
    float sums[gpu::kOctet] = {};
#pragma unroll
    for (uint32_t i = 0; i < count; ++i) {
      const Wire values = Wire::load(from + int64_t{i} * rings.piece_bytes);
#pragma unroll
      for (int v = 0; v < gpu::kOctet; ++v) sums[v] += values.value(v);
    }
    if (args.addend.data) add_addend(args, piece.token, octet, sums);
    store_output(args, piece.token, octet, sums);
  }
}

template <CombineWire kWire>
__device__ void add_up_pieces(const CombineKernelArgs& args, const Rings& rings, const std::byte* stages,
                              BulkShared& shared) {
  for (Turn turn;; turn.next(rings.num_pieces)) {
    gpu::ptx::mbarrier_wait(shared.piece_full + turn.stage, turn.round & 1u);
    const Piece piece = shared.piece[turn.stage];
    if (piece.count == kNoPiece) return;
    const std::byte* const rows = stages + int64_t{turn.stage} * rings.piece_bytes * args.exchange.window.num_ranks;
    if (piece.count == 2)
      add_up_piece<kWire, 2>(args, rings, piece, rows);
    else
      add_up_piece<kWire, 0>(args, rings, piece, rows);
    HardwareWave::sync();
    if (leads()) gpu::ptx::mbarrier_arrive(shared.piece_empty + turn.stage);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

__device__ inline void prepare(BulkShared& shared) {
  const auto init = [](auto& barriers, uint32_t arrivals) {
    for (uint64_t& barrier : barriers) gpu::ptx::mbarrier_init(&barrier, arrivals);
  };
  init(shared.row_full, 1);
  init(shared.row_empty, 1);
  init(shared.taken_full, 1);
  init(shared.taken_empty, 1);
  init(shared.piece_full, 1);
  init(shared.piece_empty, kAddingWaves);
  gpu::ptx::mbarrier_init_fence();
  shared.num_arrived = shared.num_flagged = 0;
  shared.all_arrived = false;
}

template <CombineWire kWire>
__global__ void __launch_bounds__(kThreads, 1)
    combine_throughput_bulk(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT Rings rings) {
  constexpr PartialSource kSource = kWire == CombineWire::bf16 ? PartialSource::reduced_bf16 : PartialSource::reduced_f32;
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ BulkShared shared;
  std::byte* const pieces = rows + int64_t{rings.num_rows} * rings.row_bytes;
  begin_launch(args);
  Call call = open_call<ExchangeStage::combine>(args.exchange);
  const Exchange& exchange = args.exchange;
  CallState& state = *exchange.state;
  if (threadIdx.x == 0) prepare(shared);
  if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (blockIdx.x == 0)
    __syncthreads();
  else
    count_reader(exchange, call);
  send_combine_headers(exchange, call);
  const uint32_t in_lines = kWire == CombineWire::bf16 ? *exchange.routing.in_lines : 0;
  const uint32_t wave = HardwareWave::index_in_block();
  if (wave == kFetchWave) {
    Fetcher(args, call, rings, WireOctet<kWire>::kBytes, pieces, shared)
        .fetch(args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens,
               &state.added[call.epoch % 2]);
  } else if (wave > kFetchWave) {
    const ReceivedRange range(exchange, call.masked | in_lines);
    Pusher pusher(args, call, range, rings, rows, shared);
    if (wave == kLoadWave) pusher.load(&state.pushed[call.epoch % 2]);
    if (wave == kStoreWave) pusher.store();
    if (wave == kFlagWave) pusher.flag();
  } else {
    if constexpr (kWire == CombineWire::bf16) {
      const ReceivedRange few(exchange, call.masked | ~in_lines);
      for (uint32_t row = blockIdx.x; row < few.total(); row += gridDim.x) {
        int owner = 0, slot = 0;
        few.find(row, owner, slot);
        send_lines<kSource>(args, call.epoch, PairList{}, owner, slot, Share{}, kAddingThreads, nullptr);
      }
    }
    add_up_pieces<kWire>(args, rings, pieces, shared);
  }
  if (call.ended && blockIdx.x == 0 && threadIdx.x == 0) report_end(exchange);
  if (blockIdx.x == 0) finish_combine(exchange, call);
}

int64_t bytes_of_row(const CombineKernelArgs& args, CombineWire wire) {
  return int64_t{args.num_octets} * (wire == CombineWire::bf16 ? 16 : 32);
}

Rings rings_for(const CombineKernelArgs& args, CombineWire wire) {
  const int64_t row_bytes = bytes_of_row(args, wire), octets = std::max<int64_t>(args.num_octets, 1);
  Rings rings{};
  rings.row_bytes = static_cast<uint32_t>(row_bytes);
  rings.num_rows = static_cast<uint32_t>(std::clamp<int64_t>(kPushBytes / std::max<int64_t>(row_bytes, 1), 2, kMaxRows));
  const int64_t num_ranks = args.exchange.window.num_ranks;
  const int64_t room = kSharedBytes - rings.num_rows * row_bytes;
  const int64_t octets_each = std::max<int64_t>(room / kMinPieces / num_ranks * octets / std::max<int64_t>(row_bytes, 1), 1);
  rings.num_parts = static_cast<uint32_t>((octets + octets_each - 1) / octets_each);
  rings.piece_bytes = static_cast<uint32_t>((octets + rings.num_parts - 1) / rings.num_parts * (row_bytes / octets));
  const int64_t piece_bytes = std::max<int64_t>(rings.piece_bytes * num_ranks, 1);
  rings.num_pieces = static_cast<uint32_t>(std::clamp<int64_t>(room / piece_bytes, kMinPieces, kMaxPieces));
  return rings;
}

int64_t shared_bytes_of(const Rings& rings, const CombineKernelArgs& args) {
  return int64_t{rings.num_rows} * rings.row_bytes +
         int64_t{rings.num_pieces} * rings.piece_bytes * args.exchange.window.num_ranks;
}

template <CombineWire kWire>
void launch_with(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  const Rings rings = rings_for(args, kWire);
  gpu::launch(combine_throughput_bulk<kWire>,
              {.variant = "combine.throughput",
               .num_blocks = static_cast<uint32_t>(budget.num_multiprocessors),
               .num_threads = kThreads,
               .shared_bytes = shared_bytes_of(rings, args),
               .overlaps_previous = budget.overlaps},
              stream, args, rings);
}

}  // namespace

bool takes_bulk(const CombineKernelArgs& args, CombineWire wire) {
  const bool as_it_is = (wire == CombineWire::bf16 && args.source == PartialSource::reduced_bf16) ||
                        (wire == CombineWire::f32 && args.source == PartialSource::reduced_f32);
  return as_it_is && shared_bytes_of(rings_for(args, wire), args) <= kSharedBytes;
}

void load_combine_bulk_kernel(CombineWire wire) {
  const void* const kernel = wire == CombineWire::bf16
                                 ? reinterpret_cast<const void*>(combine_throughput_bulk<CombineWire::bf16>)
                                 : reinterpret_cast<const void*>(combine_throughput_bulk<CombineWire::f32>);
  gpu::max_resident_blocks(kernel, kThreads, kSharedBytes);
}

void launch_combine_bulk(const CombineKernelArgs& args, CombineWire wire, const Budget& budget, Stream stream) {
  if (wire == CombineWire::bf16)
    launch_with<CombineWire::bf16>(args, budget, stream);
  else
    launch_with<CombineWire::f32>(args, budget, stream);
}

}  // namespace mixlane::exchange_gpu
