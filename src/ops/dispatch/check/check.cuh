// MIXLANE_CHECK=protocol: kernels around those of the exchange that find out whether it moved what it should have.
//
// dispatch: the receiver takes a checksum of each record as soon as its dispatch is over. The sender computes the same from
// its inputs and stores it, stamped with the epoch, beside the receiver's window. When those have come, they are compared.
// combine: each rank computes its partial sums again and stores them beside the owner's window. The owner compares them with
// those that combine sent, adds them up again and compares the outputs bit by bit.
#pragma once

#include "ops/dispatch/check/args.hpp"
#include "ops/dispatch/latency/combine.cuh"
#include "ops/dispatch/latency/send_rows.cuh"

namespace mixlane::exchange_gpu {

inline constexpr uint32_t kCheckThreads = 256;

__device__ inline uint32_t epoch_of(const Exchange& exchange, ExchangeStage stage) {
  return stage == ExchangeStage::dispatch ? exchange.state->dispatch_epoch : exchange.state->combine_epoch;
}
// Ranks that are left out; all, if this rank takes part in nothing any more.
__device__ inline uint32_t left_out(const Exchange& exchange) {
  const uint32_t masked = gpu::load_relaxed<Scope::device>(exchange.masked);
  return (masked & kEnded) != 0 ? ~0u : masked;
}

// ---------------------------------------------------------------------------------------------------------------------
// Poison

__device__ inline void poison(std::byte* from, int64_t bytes) {
  const uint4 ones = make_uint4(~0u, ~0u, ~0u, ~0u);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < bytes / 16; i += step)
    reinterpret_cast<uint4*>(from)[i] = ones;
}

// After a dispatch the records are the caller's until the next call, and no peer writes any before this rank has begun it;
// partial sums after a combine likewise. A combine needs the weights in the records, so ids and weights stay.
static __global__ void __launch_bounds__(kCheckThreads)
    poison_windows(const MIXLANE_GRID_CONSTANT Exchange exchange, uint32_t payload_bytes, bool keep_records) {
  const Window& window = exchange.window;
  const int64_t rows = int64_t{window.num_ranks} * window.capacity;
  std::byte* const own = window.parts[window.rank];
  const uint32_t last_stage = exchange.state->last_stage;
  if (left_out(exchange) == ~0u) return;
  if (last_stage == 1 + static_cast<uint32_t>(ExchangeStage::dispatch) && !keep_records) {
    const int64_t per_row = payload_bytes / 16, step = int64_t{gridDim.x} * blockDim.x;
    const uint4 ones = make_uint4(~0u, ~0u, ~0u, ~0u);
    for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * per_row; i += step)
      reinterpret_cast<uint4*>(own + window.records_at + i / per_row * window.record_stride)[i % per_row] = ones;
  }
  if (last_stage == 1 + static_cast<uint32_t>(ExchangeStage::combine))
    poison(own + window.partials_at, rows * window.partial_stride);
}

// ---------------------------------------------------------------------------------------------------------------------
// Both stages

// Everything for the peers that earlier launches stored has arrived; the first block says so, all blocks wait until the
// peers have said it. Returns the ranks that are left out by then; all threads of a block.
__device__ inline uint32_t exchange_check_lines(const Exchange& exchange, const CheckArgs& check, ExchangeStage stage,
                                                uint32_t* shared_masked) {
  const Window& window = exchange.window;
  const uint32_t epoch = epoch_of(exchange, stage);
  const int peer = static_cast<int>(threadIdx.x);
  const auto line = [&](int owner, int source) {
    auto* const lines = reinterpret_cast<CheckLine*>(window.parts[owner] + check.lines_at);
    return &lines[source].epochs[static_cast<int>(stage)];
  };
  if (peer == 0) *shared_masked = left_out(exchange);
  __syncthreads();
  if (peer < window.num_ranks && peer != window.rank && (*shared_masked >> peer & 1u) == 0) {
    if (blockIdx.x == 0) gpu::store_release<Scope::system>(line(peer, window.rank), epoch);
    const bool here = wait_for(
        exchange, peer, epoch, [&] { return gpu::load_acquire<Scope::system>(line(window.rank, peer)); },
        [&](uint32_t word) { return word == epoch; });
    if (!here) atomicOr(shared_masked, 1u << peer);
  }
  __syncthreads();
  return *shared_masked;
}

// Status::expected is the epoch of the call, `got` the epoch of what was found, `token` a slot of the peer's rows.
static __device__ __noinline__ void report_violation(const Exchange& exchange, int peer, int64_t token, uint32_t epoch,
                                                     uint32_t got) {
  Status failure;
  failure.code = ErrorCode::internal;
  failure.rank = exchange.window.rank;
  failure.peer = peer;
  failure.token = token;
  failure.expected = epoch;
  failure.got = got;
  report(exchange.status, failure);
}

// ---------------------------------------------------------------------------------------------------------------------
// Dispatch

__device__ inline uint32_t mixed(uint32_t word, uint32_t at) {
  uint32_t x = word + at * 0x9e3779b9u;
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

// Of `word_at(0)`, ... one whole wave.
template <class WordAt>
__device__ uint32_t checksum(uint32_t num_words, WordAt&& word_at) {
  uint32_t sum = 0;
  for (uint32_t i = HardwareWave::lane(); i < num_words; i += kWave) sum += mixed(word_at(i), i);
  return HardwareWave::shuffle(HardwareWave::inclusive_sum(sum), kWave - 1);
}

__device__ inline uint32_t wave_in_grid() { return blockIdx.x * (blockDim.x / kWave) + HardwareWave::index_in_block(); }
__device__ inline uint32_t waves_of_grid() { return gridDim.x * (blockDim.x / kWave); }

// Calls `visit(source, slot)` for each received row, a wave each.
template <class Visit>
__device__ void for_received_rows(const Exchange& exchange, Visit&& visit) {
  for (int source = 0; source < exchange.window.num_ranks; ++source)
    for (auto slot = static_cast<int>(wave_in_grid()); slot < exchange.routing.recv_count[source];
         slot += static_cast<int>(waves_of_grid()))
      visit(source, slot);
}

static __global__ void __launch_bounds__(kCheckThreads)
    sum_received(const MIXLANE_GRID_CONSTANT Exchange exchange, const MIXLANE_GRID_CONSTANT CheckArgs check) {
  const Window& window = exchange.window;
  const bool flips = check.flip_epochs[0] == exchange.state->dispatch_epoch && check.flip_epochs[0] != 0;
  for_received_rows(exchange, [&](int source, int slot) {
    auto* const words = reinterpret_cast<uint32_t*>(record_at(window, window.rank, source, slot));
    if (flips && slot == 0 && HardwareWave::lane() == 0) words[0] ^= 1u;
    const uint32_t sum = checksum(check.num_record_words, [&](uint32_t i) { return words[i]; });
    if (HardwareWave::lane() == 0) check.sums[int64_t{source} * window.capacity + slot] = sum;
  });
}

// A wave per token.
static __global__ void __launch_bounds__(kCheckThreads)
    stamp_sent(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args, const MIXLANE_GRID_CONSTANT CheckArgs check) {
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  const uint32_t masked = left_out(exchange), epoch = exchange.state->dispatch_epoch;
  if (masked == ~0u) return;
  const auto num_tokens = static_cast<uint32_t>(*exchange.routing.num_tokens);
  const uint32_t num_payload_words = args.payload_bytes / 4;
  for (uint32_t token = wave_in_grid(); token < num_tokens; token += waves_of_grid()) {
    const auto* const payload = reinterpret_cast<const uint32_t*>(args.hidden.data + token * args.hidden.stride);
    const uint32_t sum = checksum(check.num_record_words, [&](uint32_t i) {
      return i < num_payload_words ? payload[i] : tail_word(args, token, i - num_payload_words);
    });
    const int rank = static_cast<int>(HardwareWave::lane());
    if (rank >= window.num_ranks || (masked >> rank & 1u) != 0) continue;
    const int slot = exchange.routing.slots[int64_t{token} * window.num_ranks + rank];
    if (slot < 0) continue;
    auto* const stamps = reinterpret_cast<uint64_t*>(window.parts[rank] + check.stamps_at);
    stamps[int64_t{window.rank} * window.capacity + slot] = uint64_t{epoch} << 32 | sum;
  }
}

static __global__ void __launch_bounds__(kCheckThreads)
    compare_received(const MIXLANE_GRID_CONSTANT Exchange exchange, const MIXLANE_GRID_CONSTANT CheckArgs check) {
  __shared__ uint32_t shared_masked;
  const Window& window = exchange.window;
  const uint32_t masked = exchange_check_lines(exchange, check, ExchangeStage::dispatch, &shared_masked);
  const uint32_t epoch = exchange.state->dispatch_epoch;
  const auto* const stamps = reinterpret_cast<const uint64_t*>(window.parts[window.rank] + check.stamps_at);
  for_received_rows(exchange, [&](int source, int slot) {
    if ((masked >> source & 1u) != 0 || HardwareWave::lane() != 0) return;
    const int64_t row = int64_t{source} * window.capacity + slot;
    const uint64_t stamp = stamps[row];
    const auto stamped = static_cast<uint32_t>(stamp >> 32);
    if (stamped != epoch || static_cast<uint32_t>(stamp) != check.sums[row])
      report_violation(exchange, source, slot, epoch, stamped);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Combine

__device__ inline std::byte* checked_partial(const Window& window, const CheckArgs& check, int owner, int source, int slot) {
  return window.parts[owner] + check.partials_at + (int64_t{source} * window.capacity + slot) * window.partial_stride;
}

// A block per received row, the own ones included.
template <CombineWire kWire, PartialSource kSource>
__global__ void __launch_bounds__(kCheckThreads)
    repeat_partials(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT CheckArgs check) {
  __shared__ PairList pairs;
  const Exchange& exchange = args.exchange;
  const Window& window = exchange.window;
  const uint32_t masked = left_out(exchange);
  const bool flips = check.flip_epochs[1] == exchange.state->combine_epoch && check.flip_epochs[1] != 0;
  for (int source = 0; source < window.num_ranks; ++source) {
    if ((masked >> source & 1u) != 0) continue;
    for (auto slot = static_cast<int>(blockIdx.x); slot < exchange.routing.recv_count[source];
         slot += static_cast<int>(gridDim.x)) {
      if (kSource == PartialSource::pairs && HardwareWave::index_in_block() == 0) list_pairs(args, source, slot, pairs);
      __syncthreads();
      const int64_t row = int64_t{source} * window.capacity + slot;
      std::byte* const to = checked_partial(window, check, source, window.rank, slot);
      for (uint32_t first = 0; first < args.num_octets; first += blockDim.x) {
        const uint32_t octet = first + threadIdx.x;
        const bool here = octet < args.num_octets;
        WireOctet<kWire> sums = local_partial<kWire, kSource>(args, pairs, row, octet, here);
        if (flips && slot == 0 && octet == 0 && source != window.rank) sums.words[0] ^= 1u;
        if (here) sums.store_to_row(to, octet, args.num_octets);
      }
      __syncthreads();
    }
  }
}

__device__ inline bool same(const std::byte* one, const std::byte* other, int num_packets) {
  uint32_t different = 0;
  for (int i = 0; i < num_packets; ++i) {
    const uint4 a = reinterpret_cast<const uint4*>(one)[i], b = reinterpret_cast<const uint4*>(other)[i];
    different |= (a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w);
  }
  return different == 0;
}

// One octet of a token: bit r if rank r's partial sum is not what rank r says, kWrongOutput if the output is not their sum.
inline constexpr uint32_t kWrongOutput = 1u << 31;
template <CombineWire kWire>
__device__ uint32_t find_wrong(const CombineKernelArgs& args, const CheckArgs& check, uint32_t token, const int32_t* slots,
                               uint32_t octet) {
  using Wire = WireOctet<kWire>;
  const Window& window = args.exchange.window;
  uint32_t wrong = 0;
  typename Wire::Sum sums[gpu::kOctet] = {};
  for (int r = 0; r < window.num_ranks; ++r) {
    if (slots[r] < 0) continue;
    const std::byte* const repeated = checked_partial(window, check, window.rank, r, slots[r]);
    const Wire partial = Wire::load_from_row(repeated, octet, args.num_octets);
    if (check.partials_in_window && r != window.rank) {
      const Wire came = Wire::load_from_row(partial_at(window, window.rank, r, slots[r]), octet, args.num_octets);
      for (int v = 0; v < gpu::kOctet; ++v)
        if (!(came.value(v) == partial.value(v)) && !(isnan(came.value(v)) && isnan(partial.value(v)))) wrong |= 1u << r;
    }
    for (int v = 0; v < gpu::kOctet; ++v) sums[v] += partial.value(v);
  }
  CombineKernelArgs again = args;
  again.output = check.outputs;
  again.output_stride = int64_t{args.num_octets} * 32;
  if (args.addend.data) add_addend(args, token, octet, sums);
  store_output(again, token, octet, sums);
  const int bytes = args.output_dtype == DType::bf16 ? 16 : 32;
  const int64_t at = int64_t{octet} * bytes;
  const bool right =
      same(again.output + token * again.output_stride + at, args.output + token * args.output_stride + at, bytes / 16);
  return wrong | (right ? 0u : kWrongOutput);
}

// A block per token. With a rank left out, by now or in the middle of the call, tokens differ in whose sums they have.
template <CombineWire kWire>
__global__ void __launch_bounds__(kCheckThreads)
    compare_outputs(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT CheckArgs check) {
  __shared__ uint32_t shared_masked, shared_wrong;
  const Exchange& exchange = args.exchange;
  if (exchange_check_lines(exchange, check, ExchangeStage::combine, &shared_masked) != 0) return;
  const uint32_t epoch = exchange.state->combine_epoch;
  const auto num_tokens = static_cast<uint32_t>(*exchange.routing.num_tokens);
  for (uint32_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    const int32_t* const slots = exchange.routing.slots + int64_t{token} * exchange.window.num_ranks;
    if (threadIdx.x == 0) shared_wrong = 0;
    __syncthreads();
    uint32_t wrong = 0;
    for (uint32_t octet = threadIdx.x; octet < args.num_octets; octet += blockDim.x)
      wrong |= find_wrong<kWire>(args, check, token, slots, octet);
    if (wrong != 0) atomicOr(&shared_wrong, wrong);
    __syncthreads();
    if (threadIdx.x == 0 && shared_wrong != 0) {
      const int peer = __ffs(static_cast<int>(shared_wrong & ~kWrongOutput)) - 1;
      report_violation(exchange, peer, peer >= 0 ? slots[peer] : static_cast<int64_t>(token), epoch, epoch);
    }
    __syncthreads();
  }
}

}  // namespace mixlane::exchange_gpu
