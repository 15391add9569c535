// One call on the device: epochs, credits, waiting with a deadline, and what is reported.
#pragma once

#include "gpu/load_if.cuh"
#include "gpu/peer.cuh"
#include "ops/dispatch/gpu/device_args.hpp"
#include "ops/dispatch/stage.hpp"

namespace mixlane::exchange_gpu {

using gpu::Scope;
using HardwareWave = gpu::Wave<gpu::kHardwareWave>;
inline constexpr uint32_t kWave = gpu::kHardwareWave;

struct Call {
  CallState before;
  uint32_t epoch;   // of the stage, from 1
  uint32_t number;  // of all calls, from 1
  uint32_t masked;
  bool needs_credits;  // the call before was not one of the other stage
  bool ended;

  __device__ bool sends_to(int rank) const { return (masked >> rank & 1u) == 0; }
};

__device__ inline SourceLine* source_line(const Window& window, int owner, int source) {
  return reinterpret_cast<SourceLine*>(window.parts[owner]) + source;
}
__device__ inline uint64_t* done_flags(const Window& window, int owner, int source) {
  return reinterpret_cast<uint64_t*>(window.parts[owner] + window.done_at) + source * kMaxSendBlocks;
}
__device__ inline uint32_t* row_flag(const Window& window, int owner, int source, int slot) {
  return reinterpret_cast<uint32_t*>(window.parts[owner] + window.row_flags_at) +
         (int64_t{source} * window.capacity + slot) * kRowParts;
}
__device__ inline std::byte* record_at(const Window& window, int owner, int source, int slot) {
  return window.parts[owner] + window.records_at + (int64_t{source} * window.capacity + slot) * window.record_stride;
}
__device__ inline std::byte* partial_at(const Window& window, int owner, int source, int slot) {
  return window.parts[owner] + window.partials_at + (int64_t{source} * window.capacity + slot) * window.partial_stride;
}

// Before anything else.
template <class Args>
__device__ void begin_launch(const Args& args) {
  gpu::prefetch_args(args);
  gpu::allow_next_kernel();
  gpu::wait_for_previous_kernel();
}

// What a call is opened with, on its way.
struct CallWords {
  uint4 state;
  uint32_t masked;
};
__device__ inline CallWords fetch_call(const Exchange& exchange) {
  return {gpu::load_if(true, exchange.state, {}), gpu::load_relaxed<Scope::device>(exchange.masked)};
}

template <ExchangeStage kStage>
__device__ Call open_call(const CallWords& words) {
  gpu::wait_for_value(words.state.z + words.masked);
  Call call;
  call.before = {words.state.x, words.state.y, words.state.z, 0};
  call.masked = words.masked;
  call.ended = (call.masked & kEnded) != 0;
  if (call.ended) call.masked = ~0u;  // nothing is sent and nothing awaited
  call.epoch = (kStage == ExchangeStage::dispatch ? call.before.dispatch_epoch : call.before.combine_epoch) + 1;
  call.number = call.before.dispatch_epoch + call.before.combine_epoch + 1;
  call.needs_credits = call.before.last_stage == 1 + static_cast<uint32_t>(kStage);
  return call;
}

template <ExchangeStage kStage>
__device__ Call open_call(const Exchange& exchange) {
  return open_call<kStage>(fetch_call(exchange));
}

// Every block but the closing one, once, by all its threads: a barrier behind which all of them have read the state. They
// are made to look at it, lest a load still be on its way.
__device__ inline void count_reader(const Exchange& exchange, const Call& call) {
  const bool never = call.before.last_stage == ~0u;
  if (__syncthreads_or(never) == 0 && threadIdx.x == 0) atomicAdd(&exchange.state->num_readers, 1u);
}

// By one thread of the closing block, which no other one waits for.
__device__ inline void wait_for_readers(const Exchange& exchange) {
  while (gpu::load_relaxed<Scope::device>(&exchange.state->num_readers) != gridDim.x - 1) {
  }
}

// Last thing in the closing block, by one thread.
template <ExchangeStage kStage>
__device__ void close_call(const Exchange& exchange, const Call& call) {
  constexpr bool dispatch = kStage == ExchangeStage::dispatch;
  *reinterpret_cast<uint4*>(exchange.state) =
      make_uint4(call.before.dispatch_epoch + (dispatch ? 1 : 0), call.before.combine_epoch + (dispatch ? 0 : 1),
                 1 + static_cast<uint32_t>(kStage), 0);
  const uint32_t next = (call.epoch + 1) % 2;
  if constexpr (dispatch)
    exchange.state->sent[next] = 0;
  else
    exchange.state->pushed[next] = exchange.state->added[next] = 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reports

// Keeps the first failure and counts the others like it; several blocks may report.
static __device__ __noinline__ void report(Status* to, const Status& failure) {
  auto* const code = reinterpret_cast<int*>(&to->code);
  const int before = atomicCAS(code, static_cast<int>(ErrorCode::ok), static_cast<int>(failure.code));
  if (before == static_cast<int>(ErrorCode::ok)) {
    to->rank = failure.rank;
    to->peer = failure.peer;
    to->token = failure.token;
    to->expected = failure.expected;
    to->got = failure.got;
    to->waited_us = failure.waited_us;
  }
  if (before == static_cast<int>(ErrorCode::ok) || before == static_cast<int>(failure.code))
    atomicAdd(&to->failures, failure.failures > 0 ? failure.failures : 1);
}

static __device__ __noinline__ void end_all_calls(const Exchange& exchange, const Status& failure) {
  if ((atomicOr(exchange.masked, kEnded) & kEnded) != 0) return;
  *exchange.end = failure;
  __threadfence_system();
  for (int peer = 0; peer < exchange.window.num_ranks; ++peer)
    if (peer != exchange.window.rank)
      gpu::store_relaxed<Scope::system>(&source_line(exchange.window, peer, exchange.window.rank)->masked,
                                        kEndedBy + static_cast<uint32_t>(failure.peer));
}

// A call after the end: says again what ended it. One thread.
[[maybe_unused]] static __device__ __noinline__ void report_end(const Exchange& exchange) {
  Status failure = *exchange.end;
  if (failure.code == ErrorCode::ok) failure.code = ErrorCode::peer_timeout;
  report(exchange.status, failure);
}

static __device__ __noinline__ void give_up(const Exchange& exchange, int peer, uint32_t expected, uint32_t got,
                                            uint64_t waited_ns) {
  if ((atomicOr(exchange.masked, 1u << peer) >> peer & 1u) != 0) return;  // another block was first
  const int rank = exchange.window.rank;
  Status failure;
  failure.code = ErrorCode::peer_timeout;
  failure.rank = rank;
  failure.peer = peer;
  failure.failures = 1;
  failure.expected = expected;
  failure.got = got;
  failure.waited_us = static_cast<int64_t>(waited_ns / 1000);
  report(exchange.status, failure);
  gpu::store_relaxed<Scope::system>(&source_line(exchange.window, peer, rank)->masked, kLeftOut);
  if (exchange.fail_on_timeout) end_all_calls(exchange, failure);
}

// `peer` has left this rank out, or has ended because of another one.
static __device__ __noinline__ void report_mark_of(const Exchange& exchange, int peer, uint32_t mark, uint64_t waited_ns) {
  const int rank = exchange.window.rank, culprit = static_cast<int>(mark - kEndedBy);
  const bool other = mark >= kEndedBy && culprit != rank;
  Status failure;
  failure.code = other ? ErrorCode::peer_timeout : ErrorCode::rank_masked;
  failure.rank = rank;
  failure.peer = other ? culprit : peer;
  failure.failures = 1;
  failure.waited_us = static_cast<int64_t>(waited_ns / 1000);
  report(exchange.status, failure);
  end_all_calls(exchange, failure);
}

// ---------------------------------------------------------------------------------------------------------------------
// Waiting

// Now and then between looks: whether to go on. False if `peer` is left out, by now or by an earlier decision of another
// block. Rarely run, so it must not bloat the kernels: they are short enough for fetching their code to matter.
static __device__ __noinline__ bool keep_waiting(const Exchange& exchange, int peer, uint32_t expected, uint32_t got,
                                                 uint64_t& since) {
  const uint64_t now = gpu::clock_ns();
  if (since == 0) since = now;
  const uint32_t masked = gpu::load_relaxed<Scope::device>(exchange.masked);
  if ((masked & (kEnded | 1u << peer)) != 0) return false;
  const uint32_t mark = gpu::load_relaxed<Scope::system>(&source_line(exchange.window, exchange.window.rank, peer)->masked);
  if (mark != 0) {
    report_mark_of(exchange, peer, mark, now - since);
    return false;
  }
  if (now - since < exchange.deadline_ns) return true;
  give_up(exchange, peer, expected, got, now - since);
  return false;
}

// Polls `look()`, a word in this rank's window that `peer` writes, until `arrived(word)`. False if the peer is left out.
template <class Look, class Arrived>
__device__ bool wait_for(const Exchange& exchange, int peer, uint32_t expected, Look&& look, Arrived&& arrived) {
  constexpr uint32_t kLooksPerCheck = 64;
  uint64_t since = 0;
  for (uint32_t looks = 1;; ++looks) {
    const auto word = look();
    if (arrived(word)) return true;
    if (looks % kLooksPerCheck != 0) continue;
    const auto got = static_cast<uint32_t>(sizeof(word) == 8 ? uint64_t{word} >> 32 : word);
    if (!keep_waiting(exchange, peer, expected, got, since)) return false;
  }
}

// "All my reading before this call is done", to and from every peer; by all threads of a block. Returns `masked`
// with the peers that do not answer.
[[maybe_unused]] static __device__ __noinline__ uint32_t exchange_credits(const Exchange& exchange, uint32_t number,
                                                                          uint32_t masked, uint32_t* shared_masked) {
  const Window& window = exchange.window;
  const int peer = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) *shared_masked = masked;
  __syncthreads();
  if (peer < window.num_ranks && peer != window.rank && (masked >> peer & 1u) == 0) {
    if (blockIdx.x == 0) gpu::store_release<Scope::system>(&source_line(window, peer, window.rank)->credit, number);
    const uint32_t* const credit = &source_line(window, window.rank, peer)->credit;
    const bool here = wait_for(
        exchange, peer, number, [&] { return gpu::load_acquire<Scope::system>(credit); },
        [&](uint32_t word) { return static_cast<int32_t>(word - number) >= 0; });
    if (!here) atomicOr(shared_masked, 1u << peer);
  }
  __syncthreads();
  return *shared_masked;
}

// "This rank has begun this combine", to every peer; by all threads of all blocks, of which the first does it.
__device__ inline void send_combine_headers(const Exchange& exchange, const Call& call) {
  const Window& window = exchange.window;
  const int peer = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0 && peer < window.num_ranks && peer != window.rank && call.sends_to(peer))
    gpu::store_relaxed<Scope::system>(&source_line(window, peer, window.rank)->combine_header, call.epoch);
}

// Until every peer has said so: also a rank without rows for this one must be past its dispatch before the next one of this
// rank. By all threads of a block.
__device__ inline void wait_for_combine_headers(const Exchange& exchange, const Call& call) {
  const Window& window = exchange.window;
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < window.num_ranks && peer != window.rank && call.sends_to(peer)) {
    const uint32_t* const header = &source_line(window, window.rank, peer)->combine_header;
    wait_for(
        exchange, peer, call.epoch, [&] { return gpu::load_acquire<Scope::system>(header); },
        [&](uint32_t epoch) { return epoch == call.epoch; });
  }
}

__device__ inline void spin_ns(uint64_t duration) {
  const uint64_t since = gpu::clock_ns();
  while (gpu::clock_ns() - since < duration) {
  }
}
// For tests of the protocol: waits for a time that is different in every block and call.
static __device__ __noinline__ void spin_a_little(const Exchange& exchange, uint32_t number) {
  uint32_t random = (number * 1024u + blockIdx.x) * 2654435761u + static_cast<uint32_t>(exchange.window.rank) * 40503u;
  random ^= random >> 15;
  random *= 2246822519u;
  if (random % 4 == 0) spin_ns((random >> 3) % exchange.jitter_ns);
}
// All threads of the block.
static __device__ __noinline__ void wait_a_little(const Exchange& exchange, uint32_t number) {
  spin_a_little(exchange, number);
  __syncthreads();
}
__device__ inline void be_late(const Exchange& exchange, uint32_t number) {
  if (exchange.jitter_ns != 0) wait_a_little(exchange, number);
}

// The same: a rank that stops in mid-call. Every other block waits in the call that is to stall.
template <ExchangeStage kStage>
static __device__ __noinline__ void stall_in_call(const Exchange& exchange) {
  const uint32_t* const epoch =
      kStage == ExchangeStage::dispatch ? &exchange.state->dispatch_epoch : &exchange.state->combine_epoch;
  const bool one_of_two = blockIdx.x % 2 == 1 || gridDim.x == 1;
  if (one_of_two && gpu::load_relaxed<Scope::device>(epoch) + 1 == exchange.stall_epoch) spin_ns(exchange.stall_ns);
  __syncthreads();
}
// Before a block sends, and before it counts as a reader of the state; by all its threads.
template <ExchangeStage kStage>
__device__ void stall_if_asked(const Exchange& exchange) {
  if (exchange.stall_ns != 0) stall_in_call<kStage>(exchange);
}

// ---------------------------------------------------------------------------------------------------------------------
// Shares of the work

// Rows of one block: a range of whole rows, or a part of one where there are more blocks than rows.
struct Share {
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t part = 0;
  uint32_t log2_parts = 0;
  uint32_t num_active = 0;  // blocks that have a share

  __host__ __device__ static uint32_t parts_for(uint32_t num_rows, uint32_t num_blocks) {
    return num_rows * 4 <= num_blocks ? 2 : num_rows * 2 <= num_blocks ? 1 : 0;
  }

  __device__ static Share of(uint32_t num_rows, uint32_t num_blocks, uint32_t block, bool whole_rows = false) {
    Share share;
    share.log2_parts = whole_rows ? 0 : parts_for(num_rows, num_blocks);
    const uint32_t num_units = num_rows << share.log2_parts;
    share.num_active = min(num_units, num_blocks);
    if (block >= share.num_active) return share;
    if (num_units <= num_blocks) {
      share.begin = block >> share.log2_parts;
      share.end = share.begin + 1;
      share.part = block - (share.begin << share.log2_parts);
    } else {
      const uint32_t each = num_rows / num_blocks, larger = num_rows - each * num_blocks;
      share.begin = block * each + min(block, larger);
      share.end = share.begin + each + (block < larger ? 1 : 0);
    }
    return share;
  }

  __device__ bool empty() const { return begin == end; }
  __device__ bool last_part() const { return part + 1 == 1u << log2_parts; }
  // This part of `total` pieces of a row.
  __device__ uint32_t first_of(uint32_t total) const { return total * part >> log2_parts; }
  __device__ uint32_t end_of(uint32_t total) const { return total * (part + 1) >> log2_parts; }
};

}  // namespace mixlane::exchange_gpu
