// combine.throughput of sm_90 for rows that are reduced before and go as they are: in every block one thread pushes rows by
// bulk copies, another one fetches the partial sums that have come into shared memory, and most waves add up from there.
#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/throughput/add_rows.cuh"
#include "ops/dispatch/throughput/push_rows.cuh"

namespace mixlane::exchange_gpu {
namespace bulk_combine {
namespace {

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
  shared.arrivals.clear(1);
  shared.num_found = shared.num_fetched = 0;
  shared.all_found = false;
}

template <CombineWire kWire>
__global__ void __launch_bounds__(kThreads, 1)
    combine_throughput_bulk(const MIXLANE_GRID_CONSTANT CombineKernelArgs args, const MIXLANE_GRID_CONSTANT Rings rings) {
  constexpr PartialSource kSource = kWire == CombineWire::bf16 ? PartialSource::reduced_bf16 : PartialSource::reduced_f32;
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ BulkShared shared;
  std::byte* const pieces = rows + int64_t{rings.num_rows} * rings.row_bytes;
  begin_launch(args);
  stall_if_asked<ExchangeStage::combine>(args.exchange);
  const Exchange& exchange = args.exchange;
  // Owners with few tokens, who do not read flags.
  const uint32_t with_inbox = kWire == CombineWire::bf16 ? *exchange.routing.with_inbox : 0;
  const ReceivedCounts received(exchange);
  Call call = open_call<ExchangeStage::combine>(exchange);
  CallState& state = *exchange.state;
  if (threadIdx.x == 0) prepare(shared);
  if (call.needs_credits) call.masked = exchange_credits(exchange, call.number, call.masked, &shared.masked);
  if (threadIdx.x == 0) shared.masked = call.masked;
  if (blockIdx.x == 0)
    __syncthreads();
  else
    count_reader(exchange, call);
  send_combine_headers(exchange, call);
  const uint32_t wave = HardwareWave::index_in_block();
  if (wave == kLookWave) {
    Looker(args, call, shared)
        .look(args.counts_on_device ? static_cast<uint32_t>(*exchange.routing.num_tokens) : args.num_tokens,
              &state.added[call.epoch % 2]);
  } else if (wave == kFetchWave) {
    Fetcher(args, rings, WireOctet<kWire>::kBytes, pieces, shared).fetch();
  } else if (wave > kFetchWave) {
    const ReceivedRange range(received, call.masked | with_inbox);
    Pusher pusher(args, call, range, rings, rows, shared);
    if (wave == kLoadWave) pusher.load(&state.pushed[call.epoch % 2]);
    if (wave == kStoreWave) pusher.store();
    if (wave == kFlagWave) pusher.flag();
  } else {
    if constexpr (kWire == CombineWire::bf16) {
      const ReceivedRange few(received, call.masked | ~with_inbox);
      for (uint32_t row = blockIdx.x; row < few.total(); row += gridDim.x) {
        int owner = 0, slot = 0;
        few.find(row, owner, slot);
        put_in_inbox<kSource>(args, PairList{}, owner, slot, kAddingThreads);
      }
    }
    add_up_pieces<kWire>(args, rings, pieces, shared);
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
}  // namespace bulk_combine

using namespace bulk_combine;

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
