// combine.throughput: this rank's tokens, by two waves that find and fetch their partial sums and many that add up.
#pragma once

#include "gpu/ptx/acquire.cuh"
#include "ops/dispatch/throughput/combine_bulk.cuh"

namespace mixlane::exchange_gpu::bulk_combine {

// The first octet of a part of a row.
__device__ inline uint32_t part_begin(const CombineKernelArgs& args, const Rings& rings, uint32_t part) {
  return args.num_octets * part / rings.num_parts;
}

// A wave that takes tokens, and looks for the flags of several tokens' rows at once, a lane for each rank of each token. It
// hands over those that are complete, in their order.
class Looker {
 public:
  __device__ Looker(const CombineKernelArgs& args, const Call& call, BulkShared& shared)
      : args_(args), call_(call), shared_(shared) {
    while (1 << log2_lanes_ < args.exchange.window.num_ranks) ++log2_lanes_;
    rank_ = static_cast<int>(HardwareWave::lane() & ((1u << log2_lanes_) - 1));
  }

  __device__ void look(uint32_t num_tokens, uint32_t* counter) {
    // Small groups, so that multiprocessors end together.
    const uint32_t most = min(kWave >> log2_lanes_, kMaxTokens);
    const Groups groups(num_tokens, max(min(num_tokens / gridDim.x / kGroupsOfBlock, most), 1u));
    uint32_t group = blockIdx.x, taken = Groups::take(counter);
    int slot = slot_of(groups, group);
    while (group < groups.count) {
      // What comes next is on its way while this rank waits.
      const uint32_t next = HardwareWave::shuffle(taken, 0);
      taken = Groups::take(counter);
      const int next_slot = slot_of(groups, next);
      look_for_group(groups.begin(group), groups.end(group), slot);
      group = next;
      slot = next_slot;
    }
    HardwareWave::sync();
    __threadfence_block();
    *static_cast<volatile bool*>(&shared_.all_found) = true;
  }

 private:
  __device__ uint32_t which() const { return HardwareWave::lane() >> log2_lanes_; }

  // Of the lane's token in its rank, -1 for none.
  __device__ int slot_of(const Groups& groups, uint32_t group) const {
    const int num_ranks = args_.exchange.window.num_ranks;
    if (group >= groups.count || which() >= groups.end(group) - groups.begin(group) || rank_ >= num_ranks) return -1;
    return args_.exchange.routing.slots[int64_t{groups.begin(group) + which()} * num_ranks + rank_];
  }

  // The tokens [begin, end).
  __device__ void look_for_group(uint32_t begin, uint32_t end, int slot) {
    const Exchange& exchange = args_.exchange;
    const Window& window = exchange.window;
    const uint32_t count = end - begin;
    const uint32_t masked = *static_cast<volatile uint32_t*>(&shared_.masked);
    const std::byte* from = nullptr;
    const uint32_t* flag = nullptr;
    if (slot >= 0 && (masked >> rank_ & 1u) == 0) {
      const bool own = rank_ == window.rank;
      from = own ? args_.rows.data + (int64_t{rank_} * window.capacity + slot) * args_.rows.stride
                 : partial_at(window, window.rank, rank_, slot);
      if (!own) flag = row_flag(window, window.rank, rank_, slot);
    }
    uint64_t since = 0;
    uint32_t done = 0;
#pragma unroll 1
    for (uint32_t looks = 1; done < count; ++looks) {
      if (flag != nullptr) {
        // No fence later: it would wait for what all waves have stored.
        const gpu::Packet words = gpu::ptx::load_acquire_packet_system(flag);
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
      if (complete == done) continue;
      hand_over(done, complete, begin + which(), from);
      done = complete;
    }
  }

  // The wave's tokens [begin, end).
  __device__ void hand_over(uint32_t begin, uint32_t end, uint32_t token, const std::byte* from) {
    while (num_found_ + (end - begin) - *static_cast<volatile uint32_t*>(&shared_.num_fetched) > kFound) {
    }
    if (which() >= begin && which() < end) {
      Found& found = shared_.found[(num_found_ + which() - begin) % kFound];
      found.from[rank_] = from;
      if (rank_ == 0) found.token = token;
    }
    num_found_ += end - begin;
    HardwareWave::sync();
    __threadfence_block();
    *static_cast<volatile uint32_t*>(&shared_.num_found) = num_found_;
  }

  const CombineKernelArgs& args_;
  const Call& call_;
  BulkShared& shared_;
  uint32_t log2_lanes_ = 0;  // of a token
  int rank_;
  uint32_t num_found_ = 0;
};

// The wave that fetches the rows of these tokens: lanes are ranks.
class Fetcher {
 public:
  __device__ Fetcher(const CombineKernelArgs& args, const Rings& rings, uint32_t octet_bytes, std::byte* stages,
                     BulkShared& shared)
      : args_(args), rings_(rings), octet_bytes_(octet_bytes), stages_(stages), shared_(shared) {}

  __device__ void fetch() {
    uint32_t fetched = 0;
    bool all = false;
    do {
      all = *static_cast<volatile bool*>(&shared_.all_found);
      __threadfence_block();
      uint32_t found = *static_cast<volatile uint32_t*>(&shared_.num_found);
      all = HardwareWave::shuffle(static_cast<int>(all), 0) != 0;
      found = HardwareWave::shuffle(found, 0);
      if (found == fetched) continue;
      __threadfence_block();
      gpu::ptx::fence_async_proxy();
      for (; fetched != found; ++fetched) fetch_token(shared_.found[fetched % kFound]);
      HardwareWave::sync();  // all lanes have read them
      *static_cast<volatile uint32_t*>(&shared_.num_fetched) = fetched;
    } while (!all);
    // Nothing comes any more.
    if (!leads()) return;
    wait_until_empty();
    shared_.piece[turn_.stage].count = kNoPiece;
    gpu::ptx::mbarrier_arrive(shared_.piece_full + turn_.stage);
  }

 private:
  __device__ void fetch_token(const Found& found) {
    const auto rank = static_cast<int>(HardwareWave::lane()), num_ranks = args_.exchange.window.num_ranks;
    const std::byte* const from = rank < num_ranks ? found.from[rank] : nullptr;
    const uint32_t token = found.token;
    const auto having = HardwareWave::ballot(from != nullptr);
    const auto index = static_cast<uint32_t>(HardwareWave::count(having & HardwareWave::lanes_below()));
    const auto num_rows = static_cast<uint32_t>(HardwareWave::count(having));
#pragma unroll 1
    for (uint32_t part = 0; part < rings_.num_parts; ++part, turn_.next(rings_.num_pieces)) {
      const uint32_t begin = part_begin(args_, rings_, part) * octet_bytes_;
      const uint32_t bytes = part_begin(args_, rings_, part + 1) * octet_bytes_ - begin;
      uint64_t* const full = shared_.piece_full + turn_.stage;
      if (leads()) {
        wait_until_empty();
        shared_.piece[turn_.stage] = {token, part, num_rows};
        gpu::ptx::mbarrier_arrive_expect(full, num_rows * bytes);
      }
      HardwareWave::sync();
      if (from != nullptr) {
        std::byte* const to = stages_ + (int64_t{turn_.stage} * num_ranks + index) * rings_.piece_bytes;
        gpu::ptx::bulk_load_expected(to, from + begin, bytes, full);
      }
    }
    HardwareWave::sync();
  }
  __device__ void wait_until_empty() const {
    if (turn_.round != 0) gpu::ptx::mbarrier_wait(shared_.piece_empty + turn_.stage, (turn_.round - 1) & 1u);
  }

  const CombineKernelArgs& args_;
  const Rings& rings_;
  uint32_t octet_bytes_;
  std::byte* stages_;
  BulkShared& shared_;
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

}  // namespace mixlane::exchange_gpu::bulk_combine
