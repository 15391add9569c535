// dispatch.throughput: what the waves of a sending block do.
#pragma once

#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/ring.cuh"

namespace mixlane::exchange_gpu::bulk_dispatch {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWaves = kThreads / kWave;
constexpr uint32_t kMaxStages = 16;

// What the waves of a block do; all of them count tokens before.
constexpr uint32_t kSlotWave = 0;
constexpr uint32_t kLoadWave = 1;
constexpr uint32_t kStoreWave = 2;
constexpr uint32_t kFlagWave = 3;
constexpr uint32_t kTakeWave = 4;
constexpr uint32_t kCheckWave = 5;
constexpr uint32_t kTailWave = 6, kTailWaves = 8;

// Tokens whose rows are flagged together: so few that multiprocessors, whose shares of the link differ, end together.
constexpr uint32_t kTokensOfBlock = 8;
constexpr uint32_t kTaken = 3;    // blocks of rows that a block of the grid works on
constexpr uint32_t kBatches = 3;  // of slots
constexpr uint32_t kFlags = 8;    // on their way

// Rows whose stores are under way while the rows before them leave shared memory, and that follow a block of rows before its
// stores are waited for: by then they have arrived.
constexpr uint32_t kRowsLeaving = 3;  // 1 in a ring of few
constexpr uint32_t kRowsBeforeFlag = 4;

struct BulkShared {
  uint64_t full[kMaxStages];   // a row's bytes have come and its tail is written
  uint64_t empty[kMaxStages];  // it has left
  uint64_t taken_full[kTaken];
  uint64_t taken_empty[kTaken];
  uint64_t batch_full[kBatches];
  uint64_t batch_empty[kBatches];
  uint32_t taken[kTaken];  // blocks of rows
  Batch batch[kBatches];
  struct {
    uint32_t block;
    uint32_t rows[kMaxRanks];  // for each rank, up to its end
  } arrived[kFlags];
  uint32_t num_arrived;  // blocks of rows whose stores are known to be done
  uint32_t num_flagged;
  bool all_arrived;
  uint32_t before[kMaxRanks];
  uint32_t masked;
  ReceiveShared checked;
};

// Rows begin at multiples of 128 bytes, as the records do: else the copy unit takes two steps for each 128 bytes.
__host__ __device__ constexpr uint32_t stage_bytes(uint32_t row_bytes) { return (row_bytes + 127) / 128 * 128; }

// The call's tokens in blocks that are flagged as one, and taken by whoever is free, first rows first.
struct RowBlocks {
  uint32_t size;  // tokens
  uint32_t count;
  uint32_t num_tokens;

  __device__ explicit RowBlocks(uint32_t tokens) : num_tokens(tokens) {
    const auto parts = [](uint32_t total, uint32_t each) { return (total + each - 1) / each; };
    size = max(max(parts(tokens, kMaxSendBlocks), min(parts(tokens, gridDim.x), kTokensOfBlock)), 1u);
    count = parts(tokens, size);
  }
  __device__ uint32_t begin(uint32_t block) const { return block * size; }
  __device__ uint32_t end(uint32_t block) const { return min((block + 1) * size, num_tokens); }
};

class BulkSender {
 public:
  __device__ BulkSender(const DispatchKernelArgs& args, const Call& call, uint32_t num_tokens, std::byte* rows,
                        uint32_t row_bytes, uint32_t num_stages, BulkShared& shared)
      : args_(args),
        call_(call),
        blocks_(num_tokens),
        rows_(rows),
        row_bytes_(row_bytes),
        num_stages_(num_stages),
        num_tail_waves_(min(kTailWaves, num_stages)),
        shared_(shared) {}

  // All threads of the block.
  __device__ void run() {
    const uint32_t wave = HardwareWave::index_in_block();
    if (threadIdx.x == 0) prepare();
    if (threadIdx.x < kMaxRanks) shared_.before[threadIdx.x] = 0;
    __syncthreads();
    if (wave == kLoadWave) load_first();
    if (blockIdx.x < blocks_.count) count_before();
    if (call_.needs_credits) call_.masked = exchange_credits(args_.exchange, call_.number, call_.masked, &shared_.masked);
    if (blockIdx.x == 0 && wave == kCheckWave) send_headers();
    be_late(args_.exchange, call_.number);
    __syncthreads();
    if (wave == kCheckWave && blockIdx.x + 1 == gridDim.x) check_tokens();
    if (wave == kTakeWave && leads()) take_blocks();
    if (wave == kSlotWave) find_slots();
    if (wave == kLoadWave) load_rows();
    if (wave >= kTailWave && wave < kTailWave + num_tail_waves_) write_tails(wave - kTailWave);
    if (wave == kStoreWave) store_rows();
    if (wave == kFlagWave) flag_blocks();
  }

 private:
  __device__ static bool leads() { return HardwareWave::lane() == 0; }
  __device__ std::byte* stage(const Turn& turn) const { return rows_ + turn.stage * int64_t{stage_bytes(row_bytes_)}; }

  __device__ void prepare() {
    for (uint32_t stage = 0; stage < num_stages_; ++stage) {
      gpu::ptx::mbarrier_init(shared_.full + stage, 2);
      gpu::ptx::mbarrier_init(shared_.empty + stage, 1);
    }
    for (uint32_t i = 0; i < kTaken; ++i) {
      gpu::ptx::mbarrier_init(shared_.taken_full + i, 1);
      gpu::ptx::mbarrier_init(shared_.taken_empty + i, 3 + num_tail_waves_);
    }
    for (uint32_t i = 0; i < kBatches; ++i) {
      gpu::ptx::mbarrier_init(shared_.batch_full + i, 1);
      gpu::ptx::mbarrier_init(shared_.batch_empty + i, 1);
    }
    gpu::ptx::mbarrier_init_fence();
    shared_.num_arrived = shared_.num_flagged = 0;
    shared_.all_arrived = false;
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
    const uint32_t found = count_tokens(0, blocks_.begin(blockIdx.x), HardwareWave::index_in_block(), kWaves);
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
    const uint32_t lane = HardwareWave::lane(), num_tokens = blocks_.num_tokens;
    if (leads()) {
      found.num_bad = 0;
      found.first_bad = ~0u;
      if (call_.ended) report_end(exchange);
    }
    HardwareWave::sync();
    uint32_t needed = 0;
#pragma unroll 4
    for (uint32_t first = 0; first < num_tokens; first += kWave) {
      const uint32_t token = first + lane, ranks = token < num_tokens ? ranks_of(args_, token) : 0;
      if ((ranks & kBadId) != 0) count_bad_ids(args_, token, found);
      needed += count_by_rank(ranks, exchange.window.num_ranks);
    }
    if (lane < kMaxRanks) found.needed[lane] = needed;
    HardwareWave::sync();
    const auto capacity = static_cast<uint32_t>(exchange.window.capacity);
    if (HardwareWave::ballot(lane < kMaxRanks && needed > capacity) != 0 || found.num_bad != 0)
      report_tokens(args_, num_tokens, found);
    if (lane < static_cast<uint32_t>(exchange.window.num_ranks))
      exchange.routing.sent_count[lane] =
          call_.sends_to(static_cast<int>(lane)) ? static_cast<int32_t>(min(needed, capacity)) : 0;
  }

  // One thread: the blocks of rows that this block of the grid sends.
  __device__ void take_blocks() {
    Turn turn;
    uint32_t block = 0;
    do {
      if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.taken_empty + turn.stage, (turn.round - 1) & 1u);
      const bool first = turn.round == 0 && turn.stage == 0;
      block = first ? blockIdx.x : gridDim.x + atomicAdd(&args_.exchange.state->next_block, 1u);
      shared_.taken[turn.stage] = block;
      gpu::ptx::mbarrier_arrive(shared_.taken_full + turn.stage);
      turn.next(kTaken);
    } while (block < blocks_.count);
  }

  // Those, as they are taken: visit(block) by a whole wave of each kind that has to do with rows.
  template <class Visit>
  __device__ void each_block(Visit&& visit) const {
    for (Turn turn;; turn.next(kTaken)) {
      gpu::ptx::mbarrier_wait(shared_.taken_full + turn.stage, turn.round & 1u);
      const uint32_t block = shared_.taken[turn.stage];
      if (block >= blocks_.count) return;
      visit(block);
      HardwareWave::sync();
      if (leads()) gpu::ptx::mbarrier_arrive(shared_.taken_empty + turn.stage);
    }
  }

  __device__ void find_slots() {
    const uint32_t lane = HardwareWave::lane();
    std::byte* const records = own_records(args_.exchange.window);
    uint32_t next = lane < kMaxRanks ? shared_.before[lane] : 0, counted = blocks_.begin(blockIdx.x);
    Turn turn;
    each_block([&](uint32_t block) {
#pragma unroll 1
      for (uint32_t first = blocks_.begin(block); first < blocks_.end(block); first += kWave, turn.next(kBatches)) {
        const uint32_t end = min(first + kWave, blocks_.end(block)), token = first + lane;
        next += count_tokens(counted, first, 0, 1);
        counted = end;
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.batch_empty + turn.stage, (turn.round - 1) & 1u);
        const uint32_t before = next, ranks = token < end ? ranks_of(args_, token) : 0;
        const uint64_t distances = take_slots(args_, call_, ranks, records, next, shared_.batch[turn.stage]);
        HardwareWave::sync();
        if (leads()) gpu::ptx::mbarrier_arrive(shared_.batch_full + turn.stage);
        keep_slots(args_, token, token < end, distances, before);
      }
    });
  }

  __device__ void load(uint32_t token, const Turn& turn) const {
    gpu::ptx::bulk_load(stage(turn), args_.hidden.data + token * args_.hidden.stride, args_.payload_bytes,
                        shared_.full + turn.stage);
  }
  // The first block's rows are on their way before anything is known about them.
  __device__ uint32_t num_loaded_first() const {
    return blockIdx.x < blocks_.count ? min(blocks_.end(blockIdx.x) - blocks_.begin(blockIdx.x), num_stages_) : 0;
  }
  __device__ void load_first() const {
    if (!leads()) return;
    for (Turn turn; turn.stage < num_loaded_first(); ++turn.stage) load(blocks_.begin(blockIdx.x) + turn.stage, turn);
  }
  __device__ void load_rows() const {
    Turn turn;
    uint32_t num_loaded = num_loaded_first();
    each_block([&](uint32_t block) {
      if (!leads()) return;
#pragma unroll 1
      for (uint32_t token = blocks_.begin(block); token < blocks_.end(block); ++token, turn.next(num_stages_)) {
        if (num_loaded != 0) {
          --num_loaded;
          continue;
        }
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
        load(token, turn);
      }
    });
  }

  // Scales of fp8 input, ids and weights: behind the payload in shared memory. Waves take turns. Each knows by its row
  // before that the ring is less than two rounds behind, so the parity it waits for is not that of the round before.
  __device__ void write_tails(uint32_t wave) const {
    const uint32_t num_words = args_.num_scale_words + 2 * args_.num_topk, lane = HardwareWave::lane();
    Turn turn;
    uint32_t row = 0;
    each_block([&](uint32_t block) {
#pragma unroll 1
      for (uint32_t token = blocks_.begin(block); token < blocks_.end(block); ++token, ++row, turn.next(num_stages_)) {
        if (row % num_tail_waves_ != wave) continue;
        const uint32_t first = lane < num_words ? tail_word(args_, token, lane) : 0;
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
        auto* const tail = reinterpret_cast<uint32_t*>(stage(turn) + args_.payload_bytes);
        if (lane < num_words) tail[lane] = first;
        for (uint32_t word = lane + kWave; word < num_words; word += kWave) tail[word] = tail_word(args_, token, word);
        gpu::ptx::fence_async_proxy();
        HardwareWave::sync();
        if (leads()) gpu::ptx::mbarrier_arrive(shared_.full + turn.stage);
      }
    });
  }

  __device__ void store_rows() {
    Turn turn, freed, batch_turn;
    const uint32_t leaving = num_stages_ >= 2 * kRowsLeaving ? kRowsLeaving : 1;
    uint32_t num_stored = 0, num_sent = 0, following = 0;
    bool waits = false, stalled = false;  // a block of rows for its stores to arrive
    each_block([&](uint32_t block) {
      if (args_.exchange.jitter_ns != 0) spin_a_little(args_.exchange, call_.number + 7919 * block);
      if (!stalled && args_.exchange.stall_epoch == call_.epoch && 2 * block >= blocks_.count) {
        if (waits && leads()) say_arrived<0>(num_sent);
        waits = false;
        stalled = true;
        spin_ns(args_.exchange.stall_ns);
      }
#pragma unroll 1
      for (uint32_t first = blocks_.begin(block); first < blocks_.end(block); first += kWave, batch_turn.next(kBatches)) {
        const uint32_t end = min(first + kWave, blocks_.end(block));
        gpu::ptx::mbarrier_wait(shared_.batch_full + batch_turn.stage, batch_turn.round & 1u);
        const Batch& batch = shared_.batch[batch_turn.stage];
#pragma unroll 1
        for (uint32_t i = 0; leads() && i < end - first; ++i, turn.next(num_stages_)) {
          gpu::ptx::mbarrier_wait(shared_.full + turn.stage, turn.round & 1u);
          for (uint32_t to = 0; to < batch.num_targets[i]; ++to)
            gpu::ptx::bulk_store(batch.target[i][to], stage(turn), row_bytes_);
          gpu::ptx::end_store_group();
          if (leaving == kRowsLeaving)
            gpu::ptx::wait_until_read<kRowsLeaving>();
          else
            gpu::ptx::wait_until_read<1>();
          if (++num_stored > leaving) {
            gpu::ptx::mbarrier_arrive(shared_.empty + freed.stage);
            freed.next(num_stages_);
          }
          if (!waits || ++following != kRowsBeforeFlag) continue;
          say_arrived<kRowsBeforeFlag>(num_sent);
          waits = false;
        }
        if (end == blocks_.end(block)) {
          if (waits && leads()) say_arrived<0>(num_sent);
          note_rows(num_sent++, block, batch);
          following = 0;
          waits = true;
        }
        HardwareWave::sync();
        if (leads()) gpu::ptx::mbarrier_arrive(shared_.batch_empty + batch_turn.stage);
      }
    });
    if (!leads()) return;
    say_arrived<0>(num_sent);
    *static_cast<volatile bool*>(&shared_.all_arrived) = true;
  }
  // What the flag of the `number`th block will say. A whole wave.
  __device__ void note_rows(uint32_t number, uint32_t block, const Batch& batch) {
    while (number - *static_cast<volatile uint32_t*>(&shared_.num_flagged) >= kFlags) {
    }
    auto& note = shared_.arrived[number % kFlags];
    if (leads()) note.block = block;
    if (HardwareWave::lane() < kMaxRanks) note.rows[HardwareWave::lane()] = batch.rows[HardwareWave::lane()];
  }
  // One thread: the stores of all blocks sent so far are done, all but those of the kNewer latest rows.
  template <int kNewer>
  __device__ void say_arrived(uint32_t num_sent) {
    gpu::ptx::wait_for_stores<kNewer>();
    __threadfence_block();
    *static_cast<volatile uint32_t*>(&shared_.num_arrived) = num_sent;
  }

  // A wave of its own: making sure that a receiver that sees the flag sees the rows takes a while.
  __device__ void flag_blocks() {
    const Window& window = args_.exchange.window;
    const int rank = static_cast<int>(HardwareWave::lane());
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
        const auto& note = shared_.arrived[flagged % kFlags];
        if (rank < window.num_ranks && call_.sends_to(rank))
          gpu::store_relaxed_system(done_flags(window, rank, window.rank) + note.block,
                                    uint64_t{call_.epoch} << 32 | note.rows[rank]);
      }
      HardwareWave::sync();
      *static_cast<volatile uint32_t*>(&shared_.num_flagged) = flagged;
    } while (!all);
  }

  const DispatchKernelArgs& args_;
  Call call_;
  RowBlocks blocks_;
  std::byte* rows_;
  uint32_t row_bytes_;
  uint32_t num_stages_;
  uint32_t num_tail_waves_;
  BulkShared& shared_;
};

}  // namespace mixlane::exchange_gpu::bulk_dispatch
