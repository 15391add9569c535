// combine.throughput of sm_90 for rows that are reduced before and go as they are: in every block one thread pushes rows by
// bulk copies, another one fetches the partial sums that have come into shared memory, and most waves add up from there.
#include <algorithm>

#include "gpu/launch.hpp"
#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

constexpr uint32_t kThreads = kMaxThreads;
// What the waves of a block do.
constexpr uint32_t kAddingWaves = 12;
constexpr uint32_t kAddingThreads = kAddingWaves * kWave;
constexpr uint32_t kFetchWave = kAddingWaves;
constexpr uint32_t kLoadWave = kFetchWave + 1;
constexpr uint32_t kStoreWave = kLoadWave + 1;
constexpr uint32_t kFlagWave = kStoreWave + 1;
static_assert(kFlagWave + 1 == kThreads / kWave);

constexpr int64_t kSharedBytes = 210 * 1024;
constexpr int64_t kPushBytes = 90 * 1024;  // for rows on their way to their owners, of which two must fit
constexpr uint32_t kMaxRows = 14;
constexpr uint32_t kMaxGroup = 4;  // rows flagged together

// How shared memory is divided.
struct Rings {
  uint32_t row_bytes;
  uint32_t num_rows;     // on their way to their owners
  uint32_t num_parts;    // what adding waves get at once is a part of a token's rows
  uint32_t piece_bytes;  // most of one rank's part
};

// The partial sums of `count` ranks, piece_bytes apart: each adding wave has memory for one such part of a token's rows.
struct Piece {
  uint32_t token;
  uint32_t part;
  uint32_t count;
};

struct BulkShared {
  uint64_t row_full[kMaxRows];
  uint64_t row_empty[kMaxRows];
  uint64_t piece_full[kAddingWaves];
  uint64_t piece_empty[kAddingWaves];
  Piece piece[kAddingWaves];
  uint32_t num_arrived;  // rows whose stores are known to be done
  uint32_t masked;
};

// A stage of a ring and how often it has come round.
struct Turn {
  uint32_t stage = 0;
  uint32_t round = 0;
  __device__ void next(uint32_t num_stages) {
    if (++stage < num_stages) return;
    stage = 0;
    ++round;
  }
};

__device__ inline bool leads() { return HardwareWave::lane() == 0; }

// ---------------------------------------------------------------------------------------------------------------------
// Rows to their owners

// This block's rows, in groups that share a flag's way across the link; neighbouring groups go to neighbouring blocks.
struct PushedRows {
  const ReceivedRange& range;
  uint32_t group;  // rows of one
  uint32_t count;

  __device__ explicit PushedRows(const ReceivedRange& received) : range(received) {
    const uint32_t total = received.total(), each = total / gridDim.x;
    // Few rows are announced one by one, so that their owners need not wait for others.
    group = each >= 24 ? kMaxGroup : each >= 8 ? 2 : 1;
    const uint32_t groups = (total + group - 1) / group;
    const uint32_t mine = groups > blockIdx.x ? (groups - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    count = mine * group;
    if (mine != 0 && (groups - 1) % gridDim.x == blockIdx.x) count -= groups * group - total;
  }
  // Whole waves.
  __device__ void find(uint32_t row, int& owner, int& slot) const {
    const uint32_t turn = row / group;
    range.find((blockIdx.x + turn * gridDim.x) * group + (row - turn * group), owner, slot);
  }
};

__device__ inline void load_rows(const CombineKernelArgs& args, const Call& call, const PushedRows& rows, const Rings& rings,
                                 std::byte* stages, BulkShared& shared) {
  Turn turn;
#pragma unroll 1
  for (uint32_t row = 0; row < rows.count; ++row, turn.next(rings.num_rows)) {
    int owner = 0, slot = 0;
    rows.find(row, owner, slot);
    if (args.exchange.jitter_ns != 0) spin_a_little(args.exchange, call.number + 7919 * row);
    if (!leads()) continue;
    if (turn.round != 0) gpu::ptx::mbarrier_wait(shared.row_empty + turn.stage, (turn.round - 1) & 1u);
    gpu::ptx::bulk_load(stages + int64_t{turn.stage} * rings.row_bytes,
                        args.rows.data + (int64_t{owner} * args.exchange.window.capacity + slot) * args.rows.stride,
                        rings.row_bytes, shared.row_full + turn.stage);
  }
}

// One thread: rows stored so far but the kNewer latest ones have arrived.
template <int kNewer>
__device__ void say_arrived(uint32_t num_stored, BulkShared& shared) {
  gpu::ptx::wait_for_stores<kNewer>();
  __threadfence_block();
  *static_cast<volatile uint32_t*>(&shared.num_arrived) = num_stored - kNewer;
}

__device__ inline void store_rows(const CombineKernelArgs& args, const PushedRows& rows, const Rings& rings,
                                  const std::byte* stages, BulkShared& shared) {
  const Window& window = args.exchange.window;
  Turn turn, freed;
#pragma unroll 1
  for (uint32_t row = 0; row < rows.count; ++row, turn.next(rings.num_rows)) {
    int owner = 0, slot = 0;
    rows.find(row, owner, slot);
    if (!leads()) continue;
    gpu::ptx::mbarrier_wait(shared.row_full + turn.stage, turn.round & 1u);
    gpu::ptx::bulk_store(partial_at(window, owner, window.rank, slot), stages + int64_t{turn.stage} * rings.row_bytes,
                         rings.row_bytes);
    gpu::ptx::end_store_group();
    gpu::ptx::wait_until_read<1>();
    if (row != 0) {
      gpu::ptx::mbarrier_arrive(shared.row_empty + freed.stage);
      freed.next(rings.num_rows);
    }
    // A group after the one that is announced: by then its stores have arrived.
    if ((row + 1) % rows.group != 0 || row + 1 < 2 * rows.group) continue;
    if (rows.group == 4)
      say_arrived<4>(row + 1, shared);
    else if (rows.group == 2)
      say_arrived<2>(row + 1, shared);
    else
      say_arrived<1>(row + 1, shared);
  }
  if (leads()) say_arrived<0>(rows.count, shared);
}

// A wave of its own, because making sure that the owner sees the rows before the flag takes a while.
__device__ inline void flag_rows(const CombineKernelArgs& args, const Call& call, const PushedRows& rows,
                                 BulkShared& shared) {
  const Window& window = args.exchange.window;
  // Lanes are words of the group's flags, which lie side by side unless the rows have different owners.
  const uint32_t which = HardwareWave::lane() / kRowParts, word = HardwareWave::lane() % kRowParts;
#pragma unroll 1
  for (uint32_t first = 0; first < rows.count;) {
    const uint32_t end = min(first + rows.group, rows.count);
    uint32_t* flag = nullptr;
    for (uint32_t row = first; row < end; ++row) {
      int owner = 0, slot = 0;
      rows.find(row, owner, slot);
      if (which == row - first) flag = row_flag(window, owner, window.rank, slot) + word;
    }
    while (*static_cast<volatile uint32_t*>(&shared.num_arrived) < end) {
    }
    gpu::ptx::fence_async_proxy();
    __threadfence_system();
    if (flag != nullptr) gpu::store_relaxed<Scope::system>(flag, call.epoch);
    first = end;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Adding up

// The tokens of a block: several neighbours at a time, which come together, then those of the other blocks.
struct AddedTokens {
  uint32_t group;
  uint32_t count;
  __device__ explicit AddedTokens(uint32_t num_tokens) {
    group = num_tokens / gridDim.x >= 24 ? kMaxGroup : num_tokens / gridDim.x >= 8 ? 2 : 1;
    const uint32_t groups = (num_tokens + group - 1) / group;
    const uint32_t mine = groups > blockIdx.x ? (groups - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    count = mine * group;
    if (mine != 0 && (groups - 1) % gridDim.x == blockIdx.x) count -= groups * group - num_tokens;
  }
  __device__ uint32_t token_of(uint32_t index) const {
    const uint32_t turn = index / group;
    return (blockIdx.x + turn * gridDim.x) * group + (index - turn * group);
  }
};

// Octets [begin, end) of a part of a row.
__device__ inline uint32_t part_begin(const CombineKernelArgs& args, const Rings& rings, uint32_t part) {
  return args.num_octets * part / rings.num_parts;
}

// Looks for the flags of several tokens' rows at once, a lane for each rank of each token, and fetches the rows of those
// that are complete in their order. A whole wave.
class Fetcher {
 public:
  __device__ Fetcher(const CombineKernelArgs& args, const Call& call, const Rings& rings, uint32_t octet_bytes,
                     std::byte* stages, BulkShared& shared)
      : args_(args), call_(call), rings_(rings), octet_bytes_(octet_bytes), stages_(stages), shared_(shared) {
    while (1 << log2_lanes_ < args.exchange.window.num_ranks) ++log2_lanes_;
    rank_ = static_cast<int>(HardwareWave::lane() & ((1u << log2_lanes_) - 1));
  }

  __device__ void fetch(const AddedTokens& tokens) {
    const uint32_t together = kWave >> log2_lanes_;
#pragma unroll 1
    for (uint32_t first = 0; first < tokens.count; first += together) {
      const uint32_t index = first + (HardwareWave::lane() >> log2_lanes_);
      fetch_some(index < tokens.count ? tokens.token_of(index) : ~0u, min(together, tokens.count - first));
    }
  }

 private:
  // `token`: this lane's, of `count` in the wave.
  __device__ void fetch_some(uint32_t token, uint32_t count) {
    const Exchange& exchange = args_.exchange;
    const Window& window = exchange.window;
    const bool counts = token != ~0u && rank_ < window.num_ranks;
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
    for (uint32_t part = 0; part < rings_.num_parts; ++part, turn_.next(kAddingWaves)) {
      const uint32_t begin = part_begin(args_, rings_, part) * octet_bytes_;
      const uint32_t bytes = part_begin(args_, rings_, part + 1) * octet_bytes_ - begin;
      uint64_t* const full = shared_.piece_full + turn_.stage;
      if (mine && rank_ == 0) {
        if (turn_.round != 0) gpu::ptx::mbarrier_wait(shared_.piece_empty + turn_.stage, (turn_.round - 1) & 1u);
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

// A whole wave: from shared memory, in rank order. kCount: the number of rows if it is known, else 0.
template <CombineWire kWire, uint32_t kCount>
__device__ void add_up_piece(const CombineKernelArgs& args, const Rings& rings, const Piece& piece, const std::byte* rows) {
  using Wire = WireOctet<kWire>;
  const uint32_t begin = part_begin(args, rings, piece.part), end = part_begin(args, rings, piece.part + 1);
  const uint32_t count = kCount != 0 ? kCount : piece.count;
#pragma unroll 2
  for (uint32_t octet = begin + HardwareWave::lane(); octet < end; octet += kWave) {
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
__device__ void add_up_pieces(const CombineKernelArgs& args, const Rings& rings, uint32_t num_tokens,
                              const std::byte* pieces, BulkShared& shared) {
  const uint32_t wave = HardwareWave::index_in_block(), total = num_tokens * rings.num_parts;
  const std::byte* const rows = pieces + int64_t{wave} * rings.piece_bytes * args.exchange.window.num_ranks;
  uint32_t parity = 0;
#pragma unroll 1
  for (uint32_t unit = wave; unit < total; unit += kAddingWaves, parity ^= 1) {
    gpu::ptx::mbarrier_wait(shared.piece_full + wave, parity);
    const Piece piece = shared.piece[wave];
    if (piece.count == 2)
      add_up_piece<kWire, 2>(args, rings, piece, rows);
    else
      add_up_piece<kWire, 0>(args, rings, piece, rows);
    HardwareWave::sync();
    if (leads()) gpu::ptx::mbarrier_arrive(shared.piece_empty + wave);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

__device__ inline void init_barriers(BulkShared& shared) {
  for (uint64_t* const barriers : {shared.row_full, shared.row_empty})
    for (uint32_t i = 0; i < kMaxRows; ++i) gpu::ptx::mbarrier_init(barriers + i, 1);
  for (uint64_t* const barriers : {shared.piece_full, shared.piece_empty})
    for (uint32_t i = 0; i < kAddingWaves; ++i) gpu::ptx::mbarrier_init(barriers + i, 1);
  gpu::ptx::mbarrier_init_fence();
  shared.num_arrived = 0;
}

template <CombineWire kWire>
__global__ void __launch_bounds__(kThreads, 1)
    combine_throughput_bulk(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT Rings rings) {
  constexpr PartialSource kSource = kWire == CombineWire::bf16 ? PartialSource::reduced_bf16 : PartialSource::reduced_f32;
  constexpr uint32_t kOctetBytes = WireOctet<kWire>::kBytes;
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ BulkShared shared;
  std::byte* const pieces = rows + int64_t{rings.num_rows} * rings.row_bytes;
  begin_launch(args);
  Call call = open_call<ExchangeStage::combine>(args.exchange);
  const Exchange& exchange = args.exchange;
  if (threadIdx.x == 0) init_barriers(shared);
  if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (blockIdx.x == 0)
    __syncthreads();
  else
    count_reader(exchange, call);
  send_combine_headers(exchange, call);
  const uint32_t in_lines = kWire == CombineWire::bf16 ? *exchange.routing.in_lines : 0;
  const uint32_t num_tokens = args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens;
  const uint32_t wave = HardwareWave::index_in_block();
  if (wave == kFetchWave) {
    Fetcher(args, call, rings, kOctetBytes, pieces, shared).fetch(AddedTokens(num_tokens));
  } else if (wave > kFetchWave) {
    const ReceivedRange range(exchange, call.masked | in_lines);
    const PushedRows pushed(range);
    if (wave == kLoadWave) load_rows(args, call, pushed, rings, rows, shared);
    if (wave == kStoreWave) store_rows(args, pushed, rings, rows, shared);
    if (wave == kFlagWave) flag_rows(args, call, pushed, shared);
  } else {
    if constexpr (kWire == CombineWire::bf16) {
      const ReceivedRange few(exchange, call.masked | ~in_lines);
      for (uint32_t row = blockIdx.x; row < few.total(); row += gridDim.x) {
        int owner = 0, slot = 0;
        few.find(row, owner, slot);
        send_lines<kSource>(args, call.epoch, PairList{}, owner, slot, Share{}, kAddingThreads, nullptr);
      }
    }
    add_up_pieces<kWire>(args, rings, AddedTokens(num_tokens).count, pieces, shared);
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
  const int64_t room = (kSharedBytes - rings.num_rows * row_bytes) / kAddingWaves / args.exchange.window.num_ranks;
  const int64_t octets_each = std::max<int64_t>(room * octets / row_bytes, 1);
  rings.num_parts = static_cast<uint32_t>((octets + octets_each - 1) / octets_each);
  rings.piece_bytes = static_cast<uint32_t>((octets + rings.num_parts - 1) / rings.num_parts * (row_bytes / octets));
  return rings;
}

int64_t shared_bytes_of(const Rings& rings, const CombineKernelArgs& args) {
  return int64_t{rings.num_rows} * rings.row_bytes +
         int64_t{kAddingWaves} * rings.piece_bytes * args.exchange.window.num_ranks;
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
