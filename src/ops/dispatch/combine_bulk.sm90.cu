// combine.throughput of sm_90 for rows that are reduced before and go as they are: in every block one wave pushes rows by
// bulk copies, so that a few multiprocessors fill the link, and all other waves add up, a token each.
#include <algorithm>

#include "gpu/launch.hpp"
#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

constexpr uint32_t kThreads = kMaxThreads;
constexpr uint32_t kAddingThreads = kThreads - kWave;  // the last wave pushes
constexpr int64_t kStageBytes = 200 * 1024;            // shared memory for all rows on their way
constexpr uint32_t kMaxStages = 12;

struct BulkShared {
  uint64_t arrived[kMaxStages];
  uint32_t masked;
};

// Rows go in groups that share a flag's way across the link: one is read, one is stored, one is known to have arrived.
struct Groups {
  uint32_t rows;        // of one
  uint32_t num_stages;  // three groups
  __device__ Groups(uint32_t num_rows, uint32_t most_stages) {
    // Few rows are announced one by one, so that their owners need not wait for others.
    rows = num_rows >= 24 ? 4 : num_rows >= 8 ? 2 : 1;
    while (rows > 1 && 3 * rows > most_stages) rows /= 2;
    num_stages = 3 * rows;
  }
};

// The wave that pushes: one of its threads does the copies, all of them find the rows.
template <class Find>
__device__ void push_rows(const CombineKernelArgs& args, const Call& call, uint32_t num_rows, uint32_t row_bytes,
                          uint32_t most_stages, Find&& find, std::byte* stages, uint64_t* arrived) {
  const Window& window = args.exchange.window;
  const uint32_t mine = num_rows > blockIdx.x ? (num_rows - 1 - blockIdx.x) / gridDim.x + 1 : 0;
  const Groups groups(mine, most_stages);
  const bool leads = HardwareWave::lane() == 0;
  if (leads) {
    for (uint32_t stage = 0; stage < groups.num_stages; ++stage) gpu::ptx::mbarrier_init(arrived + stage, 1);
    gpu::ptx::mbarrier_init_fence();
  }
  const auto load = [&](uint32_t row) {
    if (row >= mine) return;
    int owner = 0, slot = 0;
    find(blockIdx.x + row * gridDim.x, owner, slot);
    const uint32_t stage = row % groups.num_stages;
    if (leads)
      gpu::ptx::bulk_load(stages + int64_t{stage} * row_bytes,
                          args.rows.data + (int64_t{owner} * window.capacity + slot) * args.rows.stride, row_bytes,
                          arrived + stage);
  };
  // Lane i: the flag of the group's row i.
  const auto announce = [&](uint32_t first) {
    uint32_t* flag = nullptr;
    for (uint32_t i = 0; i < groups.rows && first + i < mine; ++i) {
      int owner = 0, slot = 0;
      find(blockIdx.x + (first + i) * gridDim.x, owner, slot);
      if (HardwareWave::lane() == i) flag = row_flag(window, owner, window.rank, slot);
    }
    HardwareWave::sync();  // behind the leader's wait for its stores
    __threadfence_system();
    if (flag != nullptr)
      for (uint32_t word = 0; word < kRowParts; ++word) gpu::store_relaxed<Scope::system>(flag + word, call.epoch);
  };
  for (uint32_t row = 0; row < 2 * groups.rows; ++row) load(row);
#pragma unroll 1
  for (uint32_t first = 0; first < mine; first += groups.rows) {
#pragma unroll 1
    for (uint32_t row = first; row < min(first + groups.rows, mine); ++row) {
      int owner = 0, slot = 0;
      find(blockIdx.x + row * gridDim.x, owner, slot);
      const uint32_t stage = row % groups.num_stages;
      if (!leads) continue;
      gpu::ptx::mbarrier_wait(arrived + stage, row / groups.num_stages & 1u);
      gpu::ptx::bulk_store(partial_at(window, owner, window.rank, slot), stages + int64_t{stage} * row_bytes, row_bytes);
    }
    if (leads) gpu::ptx::end_store_group();
    if (first != 0) {
      if (leads) gpu::ptx::wait_for_stores_but_one();
      announce(first - groups.rows);
    }
    for (uint32_t row = first + 2 * groups.rows; row < first + 3 * groups.rows; ++row) load(row);
  }
  if (mine == 0) return;
  if (leads) gpu::ptx::wait_for_stores();
  announce((mine - 1) / groups.rows * groups.rows);
}

// Lane r: where the token's partial sum of rank r lies, null if there is none; waits for it. A whole wave.
__device__ inline const std::byte* partial_of(const CombineKernelArgs& args, const Call& call, uint32_t token,
                                              uint32_t* shared_masked) {
  const Window& window = args.exchange.window;
  // Lanes are words of the ranks' flags.
  const int lane = static_cast<int>(HardwareWave::lane()), rank = lane / static_cast<int>(kRowParts);
  const int slot = rank < window.num_ranks ? args.exchange.routing.slots[int64_t{token} * window.num_ranks + rank] : -1;
  const std::byte* from = nullptr;
  const uint32_t masked = *static_cast<volatile uint32_t*>(shared_masked);
  if (slot >= 0 && (masked >> rank & 1u) == 0) {
    from = rank == window.rank ? args.rows.data + (int64_t{rank} * window.capacity + slot) * args.rows.stride
                               : partial_at(window, window.rank, rank, slot);
    if (rank != window.rank) {
      const uint32_t* const flag = row_flag(window, window.rank, rank, slot) + lane % static_cast<int>(kRowParts);
      const bool here = wait_for(
          args.exchange, rank, call.epoch, [&] { return gpu::load_acquire<Scope::system>(flag); },
          [&](uint32_t stamp) { return stamp == call.epoch; });
      if (!here) {
        atomicOr(shared_masked, 1u << rank);
        from = nullptr;
      }
    }
  }
  // A rank counts if all its words have come.
  const auto lost = HardwareWave::ballot(from == nullptr);
  const int first = min(lane, kMaxRanks - 1) * static_cast<int>(kRowParts);
  const auto words = HardwareWave::shuffle(reinterpret_cast<unsigned long long>(from), first);
  const bool all = (lost >> first & ((1u << kRowParts) - 1)) == 0;
  return lane < kMaxRanks && all ? reinterpret_cast<const std::byte*>(words) : nullptr;
}

// The octets [begin, end) of a token; a whole wave.
template <CombineWire kWire>
__device__ void add_up_token(const CombineKernelArgs& args, const Call& call, uint32_t token, uint32_t begin, uint32_t end,
                             uint32_t* shared_masked) {
  using Wire = WireOctet<kWire>;
  constexpr uint32_t kOctets = kWire == CombineWire::bf16 ? 4 : 2;  // at once
  constexpr int kTogether = 2;                                      // ranks
  const std::byte* const partial = partial_of(args, call, token, shared_masked);
  const int num_ranks = args.exchange.window.num_ranks;
#pragma unroll 1
  for (uint32_t first = begin + HardwareWave::lane(); first - HardwareWave::lane() < end; first += kOctets * kWave) {
    float sums[kOctets][gpu::kOctet] = {};
#pragma unroll 1
    for (int group = 0; group < num_ranks; group += kTogether) {
      Wire values[kTogether][kOctets];
      const std::byte* from[kTogether];
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        from[g] = reinterpret_cast<const std::byte*>(
            HardwareWave::shuffle(reinterpret_cast<unsigned long long>(partial), min(group + g, kMaxRanks - 1)));
        if (group + g >= num_ranks) from[g] = nullptr;
#pragma unroll
        for (uint32_t i = 0; i < kOctets; ++i)
          if (from[g] != nullptr && first + i * kWave < end)
            values[g][i] = Wire::load(from[g] + int64_t{first + i * kWave} * Wire::kBytes);
      }
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        if (from[g] == nullptr) continue;
#pragma unroll
        for (uint32_t i = 0; i < kOctets; ++i)
#pragma unroll
          for (int v = 0; v < gpu::kOctet; ++v) sums[i][v] += values[g][i].value(v);
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kOctets; ++i) {
      const uint32_t octet = first + i * kWave;
      if (octet >= end) break;
      if (args.addend.data) add_addend(args, token, octet, sums[i]);
      store_output(args, token, octet, sums[i]);
    }
  }
}

template <CombineWire kWire>
__global__ void __launch_bounds__(kThreads, 1)
    combine_throughput_bulk(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, uint32_t most_stages) {
  constexpr PartialSource kSource = kWire == CombineWire::bf16 ? PartialSource::reduced_bf16 : PartialSource::reduced_f32;
  constexpr uint32_t kWaves = kAddingThreads / kWave;
  extern __shared__ __align__(128) std::byte stages[];
  __shared__ BulkShared shared;
  begin_launch(args);
  Call call = open_call<ExchangeStage::combine>(args.exchange);
  const Exchange& exchange = args.exchange;
  if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (blockIdx.x == 0)
    __syncthreads();
  else
    count_reader(exchange, call);
  send_combine_headers(exchange, call);
  // Owners with few tokens, who do not read flags.
  const uint32_t with_inbox = kWire == CombineWire::bf16 ? *exchange.routing.with_inbox : 0;
  const uint32_t wave = HardwareWave::index_in_block();
  if (wave == kWaves) {
    const ReceivedRange range(exchange, call.masked | with_inbox);
    push_rows(
        args, call, range.total(), args.num_octets * WireOctet<kWire>::kBytes, most_stages,
        [&](uint32_t row, int& owner, int& slot) { range.find(row, owner, slot); }, stages, shared.arrived);
  } else {
    if constexpr (kWire == CombineWire::bf16) {
      const ReceivedRange few(exchange, call.masked | ~with_inbox);
      for (uint32_t row = blockIdx.x; row < few.total(); row += gridDim.x) {
        int owner = 0, slot = 0;
        few.find(row, owner, slot);
        put_in_inbox<kSource>(args, owner, slot, kAddingThreads);
      }
    }
    const uint32_t num_tokens =
        args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens;
    // Several waves share a token where there are more waves than tokens. Neighbouring tokens, which come together, go to
    // neighbouring blocks.
    const uint32_t each = max(min(kWaves * gridDim.x / max(num_tokens, 1u), kWaves), 1u), teams = kWaves / each;
    const uint32_t team = wave / each, part = wave % each;
    for (uint32_t token = blockIdx.x + team * gridDim.x; team < teams && token < num_tokens; token += teams * gridDim.x)
      add_up_token<kWire>(args, call, token, args.num_octets * part / each, args.num_octets * (part + 1) / each,
                          &shared.masked);
  }
  if (call.ended && blockIdx.x == 0 && threadIdx.x == 0) report_end(exchange);
  if (blockIdx.x != 0) return;
  wait_to_close(exchange, call);
  __syncthreads();
  if (threadIdx.x == 0) close_call<ExchangeStage::combine>(exchange, call);
}

int64_t bytes_of_row(const CombineKernelArgs& args, CombineWire wire) {
  return int64_t{args.num_octets} * (wire == CombineWire::bf16 ? 16 : 32);
}

template <CombineWire kWire>
void launch_with(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  const int64_t row_bytes = bytes_of_row(args, kWire);
  const auto num_stages = static_cast<uint32_t>(std::min<int64_t>(kStageBytes / row_bytes, kMaxStages));
  gpu::launch(combine_throughput_bulk<kWire>,
              {.variant = "combine.throughput",
               .num_blocks = static_cast<uint32_t>(budget.num_multiprocessors),
               .num_threads = kThreads,
               .shared_bytes = num_stages * row_bytes,
               .overlaps_previous = budget.overlaps},
              stream, args, num_stages);
}

}  // namespace

bool takes_bulk(const CombineKernelArgs& args, CombineWire wire) {
  const bool as_it_is = (wire == CombineWire::bf16 && args.source == PartialSource::reduced_bf16) ||
                        (wire == CombineWire::f32 && args.source == PartialSource::reduced_f32);
  return as_it_is && 3 * bytes_of_row(args, wire) <= kStageBytes;
}

void load_combine_bulk_kernel(CombineWire wire) {
  const void* const kernel = wire == CombineWire::bf16
                                 ? reinterpret_cast<const void*>(combine_throughput_bulk<CombineWire::bf16>)
                                 : reinterpret_cast<const void*>(combine_throughput_bulk<CombineWire::f32>);
  gpu::max_resident_blocks(kernel, kThreads, kStageBytes);
}

void launch_combine_bulk(const CombineKernelArgs& args, CombineWire wire, const Budget& budget, Stream stream) {
  if (wire == CombineWire::bf16)
    launch_with<CombineWire::bf16>(args, budget, stream);
  else
    launch_with<CombineWire::f32>(args, budget, stream);
}

}  // namespace mixlane::exchange_gpu
