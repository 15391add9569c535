// dispatch.throughput of sm_90 for rows that go as they are: in each block one thread keeps the copy unit busy, so that a
// few multiprocessors fill the link. Rows go in slot order, a flag per block of rows: kernels may read them before the call
// is over.
#include <algorithm>

#include "gpu/launch.hpp"
#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWaves = kThreads / kWave;
constexpr uint32_t kReceiveThreads = 256;
constexpr uint32_t kMaxGrid = 256;
constexpr uint32_t kMaxStages = 14;
constexpr int64_t kStageBytes = 200 * 1024;  // shared memory for all of them
constexpr uint32_t kBatches = 2;

// What the waves of a block do.
constexpr uint32_t kSlotWave = 0;
constexpr uint32_t kLoadWave = 1;
constexpr uint32_t kStoreWave = 2;
constexpr uint32_t kTailWave = 3, kTailWaves = 3;
constexpr uint32_t kCheckWave = kTailWave + kTailWaves;
// A wave that writes every kTailWaves'th row's tail knows by its last row that the ring is at most one round behind.
constexpr uint32_t kMinStages = kTailWaves;

// Rows whose stores are under way while the rows before them leave shared memory, and that follow a block of rows before its
// flag: by then its stores have arrived.
constexpr uint32_t kRowsLeaving = 1;
constexpr uint32_t kRowsBeforeFlag = 4;

struct BulkShared {
  uint64_t full[kMaxStages];   // a row's bytes have come and its tail is written
  uint64_t empty[kMaxStages];  // it has left
  uint64_t batch_full[kBatches];
  uint64_t batch_empty[kBatches];
  Batch batch[kBatches];
  uint32_t before[kMaxRanks];
  uint32_t masked;
  ReceiveShared checked;
};

// The call's tokens in blocks that are flagged as one; block b of the grid sends blocks b, b + gridDim.x, ...: the first
// rows go first, and all have the same number of them.
struct RowBlocks {
  uint32_t size;  // tokens
  uint32_t count;
  uint32_t num_mine;  // tokens of this block of the grid

  __device__ explicit RowBlocks(uint32_t num_tokens) {
    const auto parts = [](uint32_t total, uint32_t size) { return (total + size - 1) / size; };
    const uint32_t most = max(kWave, parts(num_tokens, kMaxSendBlocks - kMaxGrid));
    const uint32_t rounds = max(parts(num_tokens, most * gridDim.x), 1u);
    size = max(parts(num_tokens, rounds * gridDim.x), 1u);
    count = parts(num_tokens, size);
    const uint32_t blocks = count > blockIdx.x ? (count - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    num_mine = blocks * size;
    if (blocks != 0 && (count - 1) % gridDim.x == blockIdx.x) num_mine -= count * size - num_tokens;
  }
  __device__ uint32_t token_of(uint32_t row) const {
    const uint32_t block = row / size;
    return (blockIdx.x + block * gridDim.x) * size + (row - block * size);
  }
};

// A stage of the ring and how often it has come round.
struct Turn {
  uint32_t stage = 0;
  uint32_t round = 0;
  __device__ void next(uint32_t num_stages) {
    if (++stage < num_stages) return;
    stage = 0;
    ++round;
  }
};

class BulkSender {
 public:
  __device__ BulkSender(const DispatchKernelArgs& args, const Call& call, uint32_t num_tokens, std::byte* rows,
                        uint32_t row_bytes, uint32_t num_stages, BulkShared& shared)
      : args_(args),
        call_(call),
        num_tokens_(num_tokens),
        blocks_(num_tokens),
        rows_(rows),
        row_bytes_(row_bytes),
        num_stages_(num_stages),
        shared_(shared) {}

  // All threads of the block.
  __device__ void run() {
    const uint32_t wave = HardwareWave::index_in_block();
    if (threadIdx.x == 0) init_barriers();
    if (threadIdx.x < kMaxRanks) shared_.before[threadIdx.x] = 0;
    __syncthreads();
    if (wave == kLoadWave && leads()) load(0, min(num_stages_, blocks_.num_mine));
    count_before();
    if (call_.needs_credits) call_.masked = exchange_credits(args_.exchange, call_.number, call_.masked, &shared_.masked);
    if (blockIdx.x == 0 && wave == kCheckWave) send_headers();
    be_late(args_.exchange, call_.number);
    __syncthreads();
    if (wave == kCheckWave && blockIdx.x + 1 == gridDim.x) check_tokens();
    if (blocks_.num_mine == 0) return;
    if (wave == kSlotWave)
      find_slots();
    else if (wave == kLoadWave && leads())
      load(num_stages_, blocks_.num_mine);
    else if (wave == kStoreWave)
      store_rows();
    else if (wave >= kTailWave && wave < kTailWave + kTailWaves)
      write_tails(wave - kTailWave);
  }

 private:
  __device__ static bool leads() { return HardwareWave::lane() == 0; }
  __device__ std::byte* stage(const Turn& turn) const { return rows_ + turn.stage * int64_t{row_bytes_}; }

  __device__ void init_barriers() {
    for (uint32_t stage = 0; stage < num_stages_; ++stage) {
      gpu::ptx::mbarrier_init(shared_.full + stage, 2);
      gpu::ptx::mbarrier_init(shared_.empty + stage, 1);
    }
    for (uint32_t i = 0; i < kBatches; ++i) {
      gpu::ptx::mbarrier_init(shared_.batch_full + i, 1);
      gpu::ptx::mbarrier_init(shared_.batch_empty + i, 1);
    }
    gpu::ptx::mbarrier_init_fence();
  }

  // Lane r: how many of the tokens [first, end) go to rank r, those counted that are this wave's of `num_waves`.
  __device__ uint32_t count_tokens(uint32_t first, uint32_t end, uint32_t wave, uint32_t num_waves) const {
    constexpr uint32_t kTogether = 4;
    uint32_t result = 0;
#pragma unroll 1
    for (uint32_t at = first + wave * kWave; at < end; at += kTogether * num_waves * kWave) {
      uint32_t ranks[kTogether];
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i) {
        const uint32_t token = at + i * num_waves * kWave + HardwareWave::lane();
        ranks[i] = token < end ? ranks_of(args_, token) : 0;
      }
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i) result += count_by_rank(ranks[i], args_.exchange.window.num_ranks);
    }
    return result;
  }

  // By all waves: the tokens before this block's first one.
  __device__ void count_before() {
    if (blocks_.num_mine == 0) return;
    const uint32_t found = count_tokens(0, blocks_.token_of(0), HardwareWave::index_in_block(), kWaves);
    if (HardwareWave::lane() < kMaxRanks && found != 0) atomicAdd(&shared_.before[HardwareWave::lane()], found);
  }

  // To all ranks, this one included: its own rows are announced in the same way.
  __device__ void send_headers() const {
    const int rank = static_cast<int>(HardwareWave::lane());
    if (rank < args_.exchange.window.num_ranks && call_.sends_to(rank)) send_header(args_, call_, blocks_.count, rank);
  }

  // A wave of the last block: what is wrong with the ids, and how many rows go where.
  __device__ void check_tokens() {
    const Exchange& exchange = args_.exchange;
    ReceiveShared& found = shared_.checked;
    const uint32_t lane = HardwareWave::lane();
    if (leads()) {
      found.num_bad = 0;
      found.first_bad = ~0u;
      if (call_.ended) report_end(exchange);
    }
    HardwareWave::sync();
    uint32_t needed = 0;
#pragma unroll 4
    for (uint32_t first = 0; first < num_tokens_; first += kWave) {
      const uint32_t token = first + lane, ranks = token < num_tokens_ ? ranks_of(args_, token) : 0;
      if ((ranks & kBadId) != 0) count_bad_ids(args_, token, found);
      needed += count_by_rank(ranks, exchange.window.num_ranks);
    }
    if (lane < kMaxRanks) found.needed[lane] = needed;
    HardwareWave::sync();
    const auto capacity = static_cast<uint32_t>(exchange.window.capacity);
    if (HardwareWave::ballot(lane < kMaxRanks && needed > capacity) != 0 || found.num_bad != 0)
      report_tokens(args_, num_tokens_, found);
    if (lane < static_cast<uint32_t>(exchange.window.num_ranks))
      exchange.routing.sent_count[lane] =
          call_.sends_to(static_cast<int>(lane)) ? static_cast<int32_t>(min(needed, capacity)) : 0;
  }

  // Batches of at most a wave's tokens, none of two blocks: visit(block, first, end, ends the block).
  template <class Visit>
  __device__ void each_batch(Visit&& visit) const {
#pragma unroll 1
    for (uint32_t block = blockIdx.x; block < blocks_.count; block += gridDim.x) {
      const uint32_t stop = min((block + 1) * blocks_.size, num_tokens_);
#pragma unroll 1
      for (uint32_t first = block * blocks_.size; first < stop; first += kWave)
        visit(block, first, min(first + kWave, stop), first + kWave >= stop);
    }
  }

  __device__ void find_slots() {
    const uint32_t lane = HardwareWave::lane();
    std::byte* const records = own_records(args_.exchange.window);
    uint32_t next = lane < kMaxRanks ? shared_.before[lane] : 0, counted = blocks_.token_of(0);
    Turn turn;
    each_batch([&](uint32_t, uint32_t first, uint32_t end, bool) {
      next += count_tokens(counted, first, 0, 1);
      counted = end;
      if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.batch_empty + turn.stage, (turn.round - 1) & 1u);
      const uint32_t token = first + lane, before = next;
      const uint32_t ranks = token < end ? ranks_of(args_, token) : 0;
      const uint64_t distances = take_slots(args_, call_, ranks, records, next, shared_.batch[turn.stage]);
      HardwareWave::sync();
      if (leads()) gpu::ptx::mbarrier_arrive(shared_.batch_full + turn.stage);
      keep_slots(args_, token, token < end, distances, before);
      turn.next(kBatches);
    });
  }

  // The rows [first, end) of this block, by one thread.
  __device__ void load(uint32_t first, uint32_t end) {
    Turn turn{first % num_stages_, first / num_stages_};
#pragma unroll 1
    for (uint32_t row = first; row < end; ++row, turn.next(num_stages_)) {
      if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
      gpu::ptx::bulk_load(stage(turn), args_.hidden.data + blocks_.token_of(row) * args_.hidden.stride, args_.payload_bytes,
                          shared_.full + turn.stage);
    }
  }

  // Scales of fp8 input, ids and weights: behind the payload in shared memory.
  __device__ void write_tails(uint32_t wave) {
    const uint32_t num_words = args_.num_scale_words + 2 * args_.num_topk;
    Turn turn;
#pragma unroll 1
    for (uint32_t row = 0; row < blocks_.num_mine; ++row, turn.next(num_stages_)) {
      if (row % kTailWaves != wave) continue;
      const uint32_t token = blocks_.token_of(row), lane = HardwareWave::lane();
      const uint32_t first = lane < num_words ? tail_word(args_, token, lane) : 0;
      if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
      auto* const tail = reinterpret_cast<uint32_t*>(stage(turn) + args_.payload_bytes);
      if (lane < num_words) tail[lane] = first;
      for (uint32_t word = lane + kWave; word < num_words; word += kWave) tail[word] = tail_word(args_, token, word);
      gpu::ptx::fence_async_proxy();
      HardwareWave::sync();
      if (leads()) gpu::ptx::mbarrier_arrive(shared_.full + turn.stage);
    }
  }

  __device__ void store_rows() {
    Turn turn, freed, batch_turn;
    uint32_t num_stored = 0, rows = 0, following = 0, block_before = 0;
    bool unflagged = false, stalled = false;
    each_batch([&](uint32_t block, uint32_t first, uint32_t end, bool last) {
      gpu::ptx::mbarrier_wait(shared_.batch_full + batch_turn.stage, batch_turn.round & 1u);
      const Batch& batch = shared_.batch[batch_turn.stage];
      if (args_.exchange.jitter_ns != 0) spin_a_little(args_.exchange, call_.number + 7919 * block);
      if (!stalled && args_.exchange.stall_epoch == call_.epoch && 2 * block >= blocks_.count) {
        if (unflagged) flag<0>(block_before, rows);
        unflagged = false;
        stalled = true;
        spin_ns(args_.exchange.stall_ns);
      }
#pragma unroll 1
      for (uint32_t i = 0; i < end - first; ++i, turn.next(num_stages_)) {
        if (leads()) {
          gpu::ptx::mbarrier_wait(shared_.full + turn.stage, turn.round & 1u);
          for (uint32_t to = 0; to < batch.num_targets[i]; ++to)
            gpu::ptx::bulk_store(batch.target[i][to], stage(turn), row_bytes_);
          gpu::ptx::end_store_group();
          gpu::ptx::wait_until_read<kRowsLeaving>();
          if (++num_stored > kRowsLeaving) {
            gpu::ptx::mbarrier_arrive(shared_.empty + freed.stage);
            freed.next(num_stages_);
          }
        }
        if (!unflagged || ++following != kRowsBeforeFlag) continue;
        flag<kRowsBeforeFlag>(block_before, rows);
        unflagged = false;
      }
      if (last) {
        if (unflagged) flag<0>(block_before, rows);
        if (HardwareWave::lane() < kMaxRanks) rows = batch.rows[HardwareWave::lane()];
        block_before = block;
        following = 0;
        unflagged = true;
      }
      HardwareWave::sync();
      if (leads()) gpu::ptx::mbarrier_arrive(shared_.batch_empty + batch_turn.stage);
      batch_turn.next(kBatches);
    });
    if (unflagged) flag<0>(block_before, rows);
  }

  // `rows`: lane r's for rank r up to the end of the block. kFollowing: rows stored since may be under way. A whole wave.
  template <int kFollowing>
  __device__ void flag(uint32_t block, uint32_t rows) {
    const Window& window = args_.exchange.window;
    if (leads()) gpu::ptx::wait_for_stores<kFollowing>();
    HardwareWave::sync();
    __threadfence_system();
    const int rank = static_cast<int>(HardwareWave::lane());
    if (rank < window.num_ranks && call_.sends_to(rank))
      gpu::store_relaxed_system(done_flags(window, rank, window.rank) + block, uint64_t{call_.epoch} << 32 | rows);
  }

  const DispatchKernelArgs& args_;
  Call call_;
  uint32_t num_tokens_;
  RowBlocks blocks_;
  std::byte* rows_;
  uint32_t row_bytes_;
  uint32_t num_stages_;
  BulkShared& shared_;
};

__global__ void __launch_bounds__(kThreads, 1)
    dispatch_throughput_bulk(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args, uint32_t row_bytes, uint32_t num_stages) {
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ BulkShared shared;
  begin_launch(args);
  const Call call = open_call<ExchangeStage::dispatch>(args.exchange);
  if (args.num_tokens && blockIdx.x + 1 == gridDim.x) report_num_tokens(args);
  BulkSender(args, call, num_tokens_of(args), rows, row_bytes, num_stages, shared).run();
}

// One block, behind the one above and what the caller put between: waits for the others' rows and closes the call.
__global__ void __launch_bounds__(kReceiveThreads)
    dispatch_throughput_receive(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args) {
  __shared__ ReceiveShared shared;
  begin_launch(args);
  const Exchange& exchange = args.exchange;
  const Call call = open_call<ExchangeStage::dispatch>(exchange);
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < kMaxRanks) shared.received[rank] = 0;
  if (rank == 0) shared.late = shared.in_lines = 0;
  __syncthreads();
  wait_for_all(exchange, call, shared);
  __syncthreads();
  const int32_t sent = rank < exchange.window.num_ranks ? exchange.routing.sent_count[rank] : 0;
  close_dispatch(exchange, call, static_cast<uint32_t>(sent), num_tokens_of(args), shared);
}

// What shared memory holds of a row: the record without what pads it to whole lines.
uint32_t row_bytes_of(const DispatchKernelArgs& args) {
  return (args.payload_bytes + 4 * (args.num_scale_words + 2 * args.num_topk) + 15) / 16 * 16;
}

}  // namespace

bool takes_bulk(const DispatchKernelArgs& args) { return kStageBytes / row_bytes_of(args) >= kMinStages; }

void load_bulk_kernel() {
  gpu::max_resident_blocks(reinterpret_cast<const void*>(dispatch_throughput_bulk), kThreads, kStageBytes);
  gpu::max_resident_blocks(reinterpret_cast<const void*>(dispatch_throughput_receive), kReceiveThreads, 0);
}

void launch_dispatch_bulk(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  const uint32_t row_bytes = row_bytes_of(args);
  const auto num_stages = static_cast<uint32_t>(std::min<int64_t>(kStageBytes / row_bytes, kMaxStages));
  const auto most = std::min(static_cast<uint32_t>(budget.num_multiprocessors), kMaxGrid);
  gpu::launch(dispatch_throughput_bulk,
              {.variant = "dispatch.throughput",
               .num_blocks = std::clamp(args.num_rows, 1u, most),
               .num_threads = kThreads,
               .shared_bytes = int64_t{num_stages} * row_bytes,
               .overlaps_previous = budget.overlaps},
              stream, args, row_bytes, num_stages);
}

void launch_dispatch_bulk_receive(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  gpu::launch(dispatch_throughput_receive,
              {.variant = "dispatch.throughput", .num_threads = kReceiveThreads, .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
