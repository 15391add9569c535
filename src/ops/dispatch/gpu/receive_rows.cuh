// The one block of a dispatch that does not send: it reports what is wrong with the ids while rows are on their way, then
// waits for the other ranks' rows.
#pragma once

#include "ops/dispatch/gpu/slots.cuh"
#include "ops/dispatch/latency/lines.cuh"

namespace mixlane::exchange_gpu {

struct ReceiveShared {
  uint32_t needed[kMaxRanks];  // rows for each rank, those that found no room included
  uint32_t received[kMaxRanks];
  uint32_t num_bad;
  uint32_t first_bad;  // pair
  uint32_t masked;
  uint32_t late;        // bit per rank whose rows did not come
  uint32_t in_lines;    // bit per rank that sends so
  uint32_t with_inbox;  // bit per rank that wants its partial sums there
};

static __device__ __noinline__ void count_bad_ids(const DispatchKernelArgs& args, uint32_t token, ReceiveShared& shared) {
  for (uint32_t k = 0; k < args.num_topk; ++k) {
    const uint32_t pair = token * args.num_topk + k;
    const int32_t id = args.ids[pair];
    if (id == -1 || static_cast<uint32_t>(id) < args.owners.num_experts) continue;
    atomicAdd(&shared.num_bad, 1u);
    atomicMin(&shared.first_bad, pair);
  }
}

// Counts this rank's rows and bad ids.
__device__ inline void count_rows(const DispatchKernelArgs& args, uint32_t num_tokens, ReceiveShared& shared) {
  const uint32_t lane = HardwareWave::lane();
  uint32_t mine = 0;
#pragma unroll 1
  for (uint32_t first = HardwareWave::index_in_block() * kWave; first < num_tokens; first += blockDim.x) {
    const uint32_t token = first + lane;
    const uint32_t ranks = token < num_tokens ? ranks_of(args, token) : 0;
    if ((ranks & kBadId) != 0) count_bad_ids(args, token, shared);
    mine += count_by_rank(ranks, args.exchange.window.num_ranks);
  }
  if (lane < kMaxRanks && mine != 0) atomicAdd(&shared.needed[lane], mine);
}

// The first token whose row for `rank` finds no room; a whole wave.
static __device__ __noinline__ int64_t first_without_room(const DispatchKernelArgs& args, uint32_t num_tokens, int rank) {
  uint32_t room = static_cast<uint32_t>(args.exchange.window.capacity);
  for (uint32_t first = 0; first < num_tokens; first += kWave) {
    const uint32_t token = first + HardwareWave::lane();
    const bool wants = token < num_tokens && (ranks_of(args, token) >> rank & 1u) != 0;
    const auto wanting = HardwareWave::ballot(wants);
    const auto in_wave = static_cast<uint32_t>(HardwareWave::count(wanting));
    if (in_wave <= room) {
      room -= in_wave;
      continue;
    }
    const auto below = static_cast<uint32_t>(HardwareWave::count(wanting & HardwareWave::lanes_below()));
    const auto found = HardwareWave::ballot(wants && below == room);
    return first + static_cast<uint32_t>(__ffsll(static_cast<long long>(found)) - 1);
  }
  return -1;
}

// The first wave, after count_rows.
static __device__ __noinline__ void report_tokens(const DispatchKernelArgs& args, uint32_t num_tokens,
                                                  const ReceiveShared& shared) {
  const Exchange& exchange = args.exchange;
  const bool reports = HardwareWave::lane() == 0;
  if (shared.num_bad != 0 && reports) {
    Status failure;
    failure.code = ErrorCode::bad_expert_id;
    failure.rank = exchange.window.rank;
    failure.failures = static_cast<int32_t>(shared.num_bad);
    failure.token = shared.first_bad / args.num_topk;
    failure.expected = args.owners.num_experts;
    failure.got = args.ids[shared.first_bad];
    report(exchange.status, failure);
  }
  for (int r = 0; r < exchange.window.num_ranks; ++r) {
    const auto needed = static_cast<int32_t>(shared.needed[r]);
    if (needed <= exchange.window.capacity) continue;
    Status failure;
    failure.token = first_without_room(args, num_tokens, r);
    failure.code = ErrorCode::capacity_overflow;
    failure.rank = exchange.window.rank;
    failure.peer = r;
    failure.failures = needed - exchange.window.capacity;
    failure.expected = exchange.window.capacity;
    failure.got = needed;
    if (reports) report(exchange.status, failure);
  }
}

// Lanes `lane`, `lane + num_lanes`, ... of those that watch `source`. False if it is left out.
__device__ inline bool wait_for_rows(const Exchange& exchange, const Call& call, int source, uint32_t lane,
                                     uint32_t num_lanes, ReceiveShared& shared) {
  const Window& window = exchange.window;
  uint64_t header = 0;
  const auto stamped = [&](uint64_t word) { return word >> 32 == call.epoch; };
  const bool here = wait_for(
      exchange, source, call.epoch,
      [&] { return header = gpu::load_acquire_system(&source_line(window, window.rank, source)->dispatch_header); },
      stamped);
  if (!here) return false;
  const uint32_t num_blocks = num_sent(header);
  if (lane == 0 && (header & kWantsInbox) != 0) atomicOr(&shared.with_inbox, 1u << source);
  if (sends_lines(header)) {
    if (lane == 0) atomicOr(&shared.in_lines, 1u << source);
    if (lane == 0) shared.received[source] = num_blocks;
    return true;
  }
  const uint64_t* const flags = done_flags(window, window.rank, source);
  for (uint32_t block = lane; block < num_blocks; block += num_lanes) {
    uint64_t flag = 0;
    if (!wait_for(
            exchange, source, call.epoch, [&] { return flag = gpu::load_acquire_system(flags + block); }, stamped))
      return false;
    if (block + 1 == num_blocks) shared.received[source] = static_cast<uint32_t>(flag);
  }
  return true;
}

__device__ inline void wait_for_all(const Exchange& exchange, const Call& call, ReceiveShared& shared) {
  const Window& window = exchange.window;
  const uint32_t num_peers = static_cast<uint32_t>(window.num_ranks) - 1, num_waves = blockDim.x / kWave;
  if (num_peers == 0) return;
  const uint32_t wave = HardwareWave::index_in_block();
  const uint32_t waves_each = max(num_waves / num_peers, 1u);
  for (uint32_t peer = wave / waves_each; peer < num_peers; peer += num_waves / waves_each) {
    const int source = (window.rank + 1 + static_cast<int>(peer)) % window.num_ranks;
    const uint32_t lane = wave % waves_each * kWave + HardwareWave::lane();
    if (!call.sends_to(source) || !wait_for_rows(exchange, call, source, lane, waves_each * kWave, shared))
      atomicOr(&shared.late, 1u << source);
    if (num_waves >= num_peers) break;
  }
}

// Behind a barrier, by all threads: rows of ranks that send in lines, if no other blocks copy them.
__device__ inline void unpack_all(const Exchange& exchange, const Call& call, ReceiveShared& shared) {
  for (int source = 0; source < exchange.window.num_ranks; ++source)
    if ((shared.in_lines & ~shared.late) >> source & 1u)
      if (!unpack_rows(exchange, call.epoch, source, {})) atomicOr(&shared.late, 1u << source);
  __syncthreads();
}

// A block that copies one source's lines to their places.
static __device__ __noinline__ void forget_rows(const Exchange& exchange, uint32_t epoch, int source) {
  while (gpu::load_relaxed<Scope::device>(&exchange.state->dispatch_epoch) != epoch) {
  }
  exchange.routing.sent_count[source] = exchange.routing.recv_count[source] = 0;
}
__device__ inline void receive_lines(const DispatchKernelArgs& args, uint32_t receiver) {
  const Exchange& exchange = args.exchange;
  const Call call = open_call<ExchangeStage::dispatch>(exchange);
  count_reader(exchange, call);
  const uint32_t num_peers = static_cast<uint32_t>(exchange.window.num_ranks) - 1, peer = receiver % num_peers;
  const int source = (exchange.window.rank + 1 + static_cast<int>(peer)) % exchange.window.num_ranks;
  if (!call.sends_to(source)) return;
  const uint32_t num_blocks = args.num_receivers / num_peers;
  const UnpackShare share{receiver / num_peers, num_blocks, Share::parts_for(args.num_rows, num_blocks)};
  // A peer that stops in the middle: the block that closes the call may have counted its rows by then.
  if (!unpack_rows(exchange, call.epoch, source, share) && HardwareWave::lane() == 0)
    forget_rows(exchange, call.epoch, source);
}

static __device__ __noinline__ void report_num_tokens(const DispatchKernelArgs& args) {
  if (threadIdx.x != 0) return;
  const int32_t given = *args.num_tokens;
  if (given >= 0 && given <= static_cast<int32_t>(args.num_rows)) return;
  Status failure;
  failure.code = ErrorCode::invalid_argument;
  failure.rank = args.exchange.window.rank;
  failure.expected = args.num_rows;
  failure.got = given;
  report(args.exchange.status, failure);
}

// When all rows have come: what combine and the caller want to know. All threads of the block; `sent`: rows for rank
// threadIdx.x.
__device__ inline void close_dispatch(const Exchange& exchange, const Call& call, uint32_t sent, uint32_t num_tokens,
                                      const ReceiveShared& shared) {
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < exchange.window.num_ranks) {
    const bool here = (shared.late >> rank & 1u) == 0;
    const bool own = rank == exchange.window.rank;
    exchange.routing.sent_count[rank] = static_cast<int32_t>(here ? sent : 0);
    exchange.routing.recv_count[rank] = static_cast<int32_t>(!here ? 0 : own ? sent : shared.received[rank]);
  }
  if (rank != 0) return;
  *exchange.routing.num_tokens = static_cast<int32_t>(num_tokens);
  *exchange.routing.with_inbox = shared.with_inbox;
  close_call<ExchangeStage::dispatch>(exchange, call);
}

// All threads of the block. `announce(call)` when this rank's rows are counted and peers may be written to.
template <class Announce>
__device__ void receive_rows(const DispatchKernelArgs& args, uint32_t num_tokens, ReceiveShared& shared,
                             Announce&& announce) {
  Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  const Exchange& exchange = args.exchange;
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < kMaxRanks) shared.needed[rank] = shared.received[rank] = 0;
  if (rank == 0) {
    shared.num_bad = 0;
    shared.late = 0;
    shared.in_lines = shared.with_inbox = 0;
    shared.first_bad = ~0u;
  }
  if (args.num_tokens) report_num_tokens(args);
  if (call.ended && rank == 0) report_end(exchange);
  __syncthreads();
  count_rows(args, num_tokens, shared);
  __syncthreads();
  const bool overflows =
      rank < exchange.window.num_ranks && shared.needed[rank] > static_cast<uint32_t>(exchange.window.capacity);
  if (HardwareWave::index_in_block() == 0 && (HardwareWave::ballot(overflows) != 0 || shared.num_bad != 0))
    report_tokens(args, num_tokens, shared);
  if (rank == static_cast<int>(blockDim.x) - 1) wait_for_readers(exchange);
  // A peer without a credit from another one does not send yet: the one that is late must be found before.
  if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
  announce(call);
  wait_for_all(exchange, call, shared);
  __syncthreads();
  if (shared.in_lines != 0 && args.num_receivers == 0) unpack_all(exchange, call, shared);
  const uint32_t sent = rank < kMaxRanks ? min(shared.needed[rank], static_cast<uint32_t>(exchange.window.capacity)) : 0;
  close_dispatch(exchange, call, sent, num_tokens, shared);
}
__device__ inline void receive_rows(const DispatchKernelArgs& args, uint32_t num_tokens, ReceiveShared& shared) {
  receive_rows(args, num_tokens, shared, [](const Call&) {});
}

}  // namespace mixlane::exchange_gpu
