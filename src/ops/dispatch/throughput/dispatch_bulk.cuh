// dispatch.throughput: what the waves of a sending block do.
#pragma once

#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/latency/dispatch.cuh"
#include "ops/dispatch/throughput/ring.cuh"

namespace mixlane::exchange_gpu::bulk_dispatch {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWaves = kThreads / kWave;
constexpr uint32_t kMaxStages = 16;

constexpr uint32_t kFetched = 3;  // tokens of those before the block's, by each thread at once

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
constexpr uint32_t kBlocksEach = 4;  // for each block of the grid, if there are tokens for them
constexpr uint32_t kTaken = 3;       // blocks of rows that a block of the grid works on
constexpr uint32_t kBatches = 3;     // of slots
constexpr uint32_t kFlags = 8;       // on their way
constexpr uint32_t kTogether = 4;    // of them, if nobody reads rows before the call is over

// Rows whose stores are under way while the rows before them leave shared memory, and that follow a block of rows before its
// stores are waited for: by then they have arrived.
constexpr uint32_t kRowsLeaving = 3;  // 1 in a ring of few
constexpr uint32_t kRowsBeforeFlag = 4, kRowsBeforeFlagFew = 1;
constexpr uint32_t kFewRows = 16;  // of a block

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
    uint32_t end;              // rows that this block of the grid has stored up to its end
    uint32_t rows[kMaxRanks];  // for each rank, up to its end
  } sent[kFlags];
  Arrivals arrivals;  // of blocks of rows
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

  __device__ RowBlocks(uint32_t tokens, uint32_t num_senders) : num_tokens(tokens) {
    const auto parts = [](uint32_t total, uint32_t each) { return (total + each - 1) / each; };
    size = max(max(parts(tokens, kMaxSendBlocks), min(tokens / num_senders / kBlocksEach, kTokensOfBlock)), 1u);
    count = parts(tokens, size);
  }
  __device__ uint32_t begin(uint32_t block) const { return block * size; }
  __device__ uint32_t end(uint32_t block) const { return min((block + 1) * size, num_tokens); }
};

class BulkSender {
 public:
  // `receives`: the grid's last block does not send, but waits for the others' rows.
  __device__ BulkSender(const DispatchKernelArgs& args, uint32_t num_tokens, std::byte* rows, uint32_t row_bytes,
                        uint32_t num_stages, bool receives, BulkShared& shared)
      : args_(args),
        receives_(receives),
        num_senders_(gridDim.x - (receives ? 1 : 0)),
        blocks_(num_tokens, num_senders_),
        rows_(rows),
        row_bytes_(row_bytes),
        num_stages_(num_stages),
        num_tail_waves_(min(kTailWaves, num_stages)),
        shared_(shared) {}

  // All threads of the block.
  __device__ void run() {
    const uint32_t wave = HardwareWave::index_in_block();
    // What slots depend on is fetched first.
    FetchedToken before[kFetched], own;
    fetch(before, own);
    call_ = open_call<ExchangeStage::dispatch>(args_.exchange);
    if (threadIdx.x == 0) prepare();
    if (threadIdx.x < kMaxRanks) shared_.before[threadIdx.x] = 0;
    count_reader(args_.exchange, call_);  // a barrier as well
    if (wave == kLoadWave) load_first();
    if (blockIdx.x < blocks_.count) count_before(before);
    if (call_.needs_credits) call_.masked = exchange_credits(args_.exchange, call_.number, call_.masked, &shared_.masked);
    if (blockIdx.x == 0 && wave == kCheckWave) send_headers();
    be_late(args_.exchange, call_.number);
    __syncthreads();
    if (wave == kCheckWave && blockIdx.x + 1 == gridDim.x) check_tokens();  // not where that block receives
    if (wave == kTakeWave && leads()) take_blocks();
    if (wave == kSlotWave) find_slots(own);
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
    shared_.arrivals.clear(receives_ ? kTogether : 1);
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

  // The tokens before this block's first one, those of `before`, and what the slot wave begins with.
  __device__ void fetch(FetchedToken (&before)[kFetched], FetchedToken& own) const {
    if (blockIdx.x >= blocks_.count) return;
    const uint32_t begin = blocks_.begin(blockIdx.x), token = begin + threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < kFetched; ++i)
      before[i] = FetchedToken(args_, i * kThreads + threadIdx.x, i * kThreads + threadIdx.x < begin);
    own = FetchedToken(args_, token, HardwareWave::index_in_block() == kSlotWave && token < blocks_.end(blockIdx.x));
  }

  // By all waves: the tokens before this block's first one.
  __device__ void count_before(const FetchedToken (&fetched)[kFetched]) {
    uint32_t found = count_tokens(kFetched * kThreads, blocks_.begin(blockIdx.x), HardwareWave::index_in_block(), kWaves);
#pragma unroll
    for (const FetchedToken& each : fetched) found += count_by_rank(each.ranks(args_), args_.exchange.window.num_ranks);
    if (HardwareWave::lane() < kMaxRanks && found != 0) atomicAdd(&shared_.before[HardwareWave::lane()], found);
  }

  // To all ranks, this one included: its own rows are announced in the same way.
  __device__ void send_headers() const {
    const int rank = static_cast<int>(HardwareWave::lane());
    if (rank < args_.exchange.window.num_ranks && call_.sends_to(rank)) send_header(args_, call_, blocks_.count, rank);
  }

  // A wave of the last block, if no block of this grid receives: what is wrong with the ids, and how many rows go where.
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
      block = first ? blockIdx.x : num_senders_ + atomicAdd(&args_.exchange.state->sent[call_.epoch % 2], 1u);
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

  // `own`: the first block's tokens.
  __device__ void find_slots(const FetchedToken& own) {
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
        const uint32_t before = next, ranks = token >= end         ? 0
                                              : token == own.token ? own.ranks(args_)
                                                                   : ranks_of(args_, token);
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
  // The first row is on its way before anything is known about it; more of them would hold up the ids.
  __device__ void load_first() const {
    if (leads() && blockIdx.x < blocks_.count) load(blocks_.begin(blockIdx.x), {});
  }
  __device__ void load_rows() const {
    Turn turn;
    bool first = true;
    each_block([&](uint32_t block) {
      if (!leads()) return;
#pragma unroll 1
      for (uint32_t token = blocks_.begin(block); token < blocks_.end(block); ++token, turn.next(num_stages_)) {
        if (first) {
          first = false;
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
    const bool few = blocks_.num_tokens < kFewRows * num_senders_;
    uint32_t num_stored = 0, num_sent = 0, num_arrived = 0;  // rows; blocks of rows
    bool stalled = false;
    each_block([&](uint32_t block) {
      if (args_.exchange.jitter_ns != 0) spin_a_little(args_.exchange, call_.number + 7919 * block);
      if (!stalled && args_.exchange.stall_epoch == call_.epoch && 2 * block >= blocks_.count) {
        if (leads()) shared_.arrivals.say<0>(num_sent);
        num_arrived = num_sent;
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
          const uint32_t behind = few ? kRowsBeforeFlagFew : kRowsBeforeFlag;
          if (num_arrived == num_sent || shared_.sent[num_arrived % kFlags].end + behind > num_stored) continue;
          ++num_arrived;
          if (few)
            shared_.arrivals.say<kRowsBeforeFlagFew>(num_arrived);
          else
            shared_.arrivals.say<kRowsBeforeFlag>(num_arrived);
        }
        if (end == blocks_.end(block)) note_rows(num_sent++, block, num_stored, batch);
        HardwareWave::sync();
        if (leads()) gpu::ptx::mbarrier_arrive(shared_.batch_empty + batch_turn.stage);
      }
    });
    if (leads()) shared_.arrivals.say_last(num_sent);
  }
  // What the flag of the `number`th block will say; lane 0 knows its `end`. A whole wave.
  __device__ void note_rows(uint32_t number, uint32_t block, uint32_t end, const Batch& batch) {
    shared_.arrivals.wait_for_flags(number + 1, kFlags);
    auto& note = shared_.sent[number % kFlags];
    if (leads()) note.block = block;
    if (leads()) note.end = end;
    if (HardwareWave::lane() < kMaxRanks) note.rows[HardwareWave::lane()] = batch.rows[HardwareWave::lane()];
  }
  // A wave of its own: lanes are ranks.
  __device__ void flag_blocks() {
    const Window& window = args_.exchange.window;
    const int rank = static_cast<int>(HardwareWave::lane());
    shared_.arrivals.flag_all([&](uint32_t first, uint32_t end) {
      for (uint32_t number = first; number != end; ++number) {
        const auto& note = shared_.sent[number % kFlags];
        if (rank < window.num_ranks && call_.sends_to(rank))
          gpu::store_relaxed_system(done_flags(window, rank, window.rank) + note.block,
                                    uint64_t{call_.epoch} << 32 | note.rows[rank]);
      }
    });
  }

  const DispatchKernelArgs& args_;
  Call call_;
  bool receives_;
  uint32_t num_senders_;
  RowBlocks blocks_;
  std::byte* rows_;
  uint32_t row_bytes_;
  uint32_t num_stages_;
  uint32_t num_tail_waves_;
  BulkShared& shared_;
};

}  // namespace mixlane::exchange_gpu::bulk_dispatch
