// dispatch.throughput: what the waves of a sending block do.
#pragma once

#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/latency/dispatch.cuh"
#include "ops/dispatch/throughput/ring.cuh"
#include "ops/dispatch/throughput/row_blocks.cuh"

namespace mixlane::exchange_gpu::bulk_dispatch {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWaves = kThreads / kWave;
constexpr uint32_t kMaxStages = 16;

// What the waves of a block do behind counting tokens.
constexpr uint32_t kSlotWave = 0;  // the only one that does not count
constexpr uint32_t kCountThreads = kThreads - kWave;
constexpr uint32_t kLoadWave = 1;
constexpr uint32_t kStoreWave = 2;
constexpr uint32_t kFlagWave = 3;
constexpr uint32_t kTakeWave = 4;
constexpr uint32_t kCheckWave = 5;
constexpr uint32_t kTailWave = 6, kTailWaves = 8;

constexpr uint32_t kTaken = 4;    // blocks of rows that a block of the grid works on
constexpr uint32_t kBatches = 4;  // of slots
constexpr uint32_t kFlags = 8;    // on their way

// Rows whose stores are under way while the rows before them leave shared memory: more in a ring of many, whose rows are
// small, and 1 in a ring of few.
constexpr uint32_t kManyStages = 14, kRowsLeavingMany = 7, kRowsLeaving = 3;
// Where blocks of rows have flags: rows that follow one before its stores are waited for. By then they have arrived.
constexpr uint32_t kRowsBeforeFlagMany = 8, kRowsBeforeFlag = 4, kRowsBeforeFlagFew = 1;
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

// tail_word() where it is rare; 0 behind the end.
static __device__ __noinline__ uint32_t bytes_or_word(const DispatchKernelArgs& args, uint32_t token, uint32_t word) {
  return word < args.num_scale_words + 2 * args.num_topk ? tail_word(args, token, word) : 0;
}

class BulkSender {
 public:
  // `receives`: the grid's last block does not send, but waits for the others' rows.
  __device__ BulkSender(const DispatchKernelArgs& args, uint32_t num_tokens, std::byte* rows, uint32_t row_bytes,
                        uint32_t num_stages, bool receives, BulkShared& shared)
      : args_(args),
        receives_(receives),
        num_senders_(gridDim.x - (receives ? 1 : 0)),
        blocks_(num_tokens, num_senders_, !receives),
        rows_(rows),
        row_bytes_(row_bytes),
        num_stages_(num_stages),
        num_tail_waves_(min(kTailWaves, num_stages)),
        shared_(shared) {}

  // All threads of the block.
  __device__ void run() {
    const uint32_t wave = HardwareWave::index_in_block();
    const bool writes_tails = wave >= kTailWave && wave < kTailWave + num_tail_waves_;
    // What slots depend on is fetched first, then what the block's first store depends on.
    const FetchedToken before = fetch();  // the slot wave's is the block's own
    call_ = open_call<ExchangeStage::dispatch>(args_.exchange);
    if (wave == kLoadWave) {
      prepare();
      if (leads() && blockIdx.x < blocks_.count) load(blocks_.begin(blockIdx.x), {});  // more rows would hold up the ids
    }
    Tail tail;
    if (writes_tails) tail = first_tail(wave - kTailWave);
    if (threadIdx.x < kMaxRanks) shared_.before[threadIdx.x] = 0;
    count_reader(args_.exchange, call_);  // a barrier as well
    if (wave == kTakeWave && leads()) hand_over(0, blockIdx.x);
    FirstSlots first_slots;
    if (wave == kSlotWave)
      first_slots = {before.token, before.ranks(args_), own_records(args_.exchange.window)};
    else if (blockIdx.x < blocks_.count)
      count_before(before);
    if (call_.needs_credits) call_.masked = exchange_credits(args_.exchange, call_.number, call_.masked, &shared_.masked);
    if (blockIdx.x == 0 && wave == kCheckWave) send_headers();
    be_late(args_.exchange, call_.number);
    __syncthreads();
    if (wave == kCheckWave && blockIdx.x + 1 == gridDim.x)
      check_tokens(args_, call_.masked, blocks_.num_tokens, shared_.checked);  // not where that block receives
    if (wave == kTakeWave && leads()) take_blocks();
    if (wave == kSlotWave) find_slots(first_slots);
    if (wave == kLoadWave) load_rows();
    if (writes_tails) write_tails(wave - kTailWave, tail);
    if (wave == kStoreWave) store_rows();
    if (wave == kFlagWave) flag_blocks();
  }

 private:
  __device__ static bool leads() { return HardwareWave::lane() == 0; }
  __device__ std::byte* stage(const Turn& turn) const { return rows_ + turn.stage * int64_t{stage_bytes(row_bytes_)}; }

  // A whole wave, each lane barriers of its own; lane 0 those of the first stage, which it uses at once.
  __device__ void prepare() {
    const uint32_t lane = HardwareWave::lane();
    if (lane < num_stages_) {
      gpu::ptx::mbarrier_init(shared_.full + lane, 2);
      gpu::ptx::mbarrier_init(shared_.empty + lane, 1);
    }
    if (lane < kTaken) {
      gpu::ptx::mbarrier_init(shared_.taken_full + lane, 1);
      gpu::ptx::mbarrier_init(shared_.taken_empty + lane, 3 + num_tail_waves_);
    }
    if (lane < kBatches) {
      gpu::ptx::mbarrier_init(shared_.batch_full + lane, 1);
      gpu::ptx::mbarrier_init(shared_.batch_empty + lane, 1);
    }
    gpu::ptx::mbarrier_init_fence();
    if (leads()) shared_.arrivals.clear(receives_ ? ~0u : 1);
  }

  // Lane r: how many of the tokens [first, end) go to rank r, those counted that are this wave's of `num_waves`.
  __device__ uint32_t count_tokens(uint32_t first, uint32_t end, uint32_t wave, uint32_t num_waves) const {
    first += wave * kWave;
    if (first >= end) return 0;
    const auto& owners = args_.owners;
    if (args_.plain_ids)
      return count_plain(reinterpret_cast<const uint4*>(args_.ids), owners.num_experts, owners.by_smaller,
                         args_.exchange.window.num_ranks, first, end, num_waves * kWave);
    return count_any(args_, first, end, num_waves * kWave);
  }

  // A token before this block's first one; the slot wave gets the block's own.
  __device__ FetchedToken fetch() const {
    if (blockIdx.x >= blocks_.count) return {};
    const bool own = HardwareWave::index_in_block() == kSlotWave;
    const uint32_t begin = blocks_.begin(blockIdx.x);
    const uint32_t token = own ? begin + HardwareWave::lane() : threadIdx.x - kWave;
    return FetchedToken(args_, token, token < (own ? blocks_.end(blockIdx.x) : begin));
  }

  // By all waves but the slot wave: the tokens before this block's first one.
  __device__ void count_before(const FetchedToken& fetched) {
    const uint32_t wave = HardwareWave::index_in_block() - 1, begin = blocks_.begin(blockIdx.x);
    if (wave * kWave >= begin) return;
    uint32_t found = count_by_rank(fetched.ranks(args_), args_.exchange.window.num_ranks);
    found += count_tokens(kCountThreads, begin, wave, kWaves - 1);
    if (HardwareWave::lane() < kMaxRanks && found != 0) atomicAdd(&shared_.before[HardwareWave::lane()], found);
  }

  // To all ranks, this one included: its own rows are announced in the same way.
  __device__ void send_headers() const {
    const int rank = static_cast<int>(HardwareWave::lane());
    if (rank < args_.exchange.window.num_ranks && call_.sends_to(rank))
      send_header(args_, call_, receives_ ? blocks_.num_sending(num_senders_) + 1 : blocks_.count, rank);
  }

  // One thread: the blocks of rows that this block of the grid sends, the first of which has been handed over.
  __device__ void take_blocks() {
    Turn turn;
    for (uint32_t block = blockIdx.x; block < blocks_.count;) {
      turn.next(kTaken);
      if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.taken_empty + turn.stage, (turn.round - 1) & 1u);
      block = num_senders_ + atomicAdd(&args_.exchange.state->sent[call_.epoch % 2], 1u);
      hand_over(turn.stage, block);
    }
  }
  __device__ void hand_over(uint32_t stage, uint32_t block) {
    shared_.taken[stage] = block;
    gpu::ptx::mbarrier_arrive(shared_.taken_full + stage);
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

  // What is known before slots are: the lane's token of the first block, its ranks, and where lane r's records in rank r
  // lie.
  struct FirstSlots {
    uint32_t token;
    uint32_t ranks;
    std::byte* records;
  };
  __device__ void find_slots(const FirstSlots& own) {
    const uint32_t lane = HardwareWave::lane();
    std::byte* const records = own.records;
    uint32_t next = lane < kMaxRanks ? shared_.before[lane] : 0, counted = blocks_.begin(blockIdx.x);
    Turn turn;
    each_block([&](uint32_t block) {
#pragma unroll 1
      for (uint32_t first = blocks_.begin(block); first < blocks_.end(block); first += kWave, turn.next(kBatches)) {
        const uint32_t end = min(first + kWave, blocks_.end(block)), token = first + lane;
        const FetchedToken fetched(args_, token, token < end && token != own.token);  // on its way while others are counted
        next += count_tokens(counted, first, 0, 1);
        counted = end;
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.batch_empty + turn.stage, (turn.round - 1) & 1u);
        const uint32_t before = next, ranks = token == own.token ? own.ranks : fetched.ranks(args_);
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
  __device__ void load_rows() const {
    Turn turn;
    bool first = true;
    each_block([&](uint32_t block) {
      if (!leads()) return;
#pragma unroll 1
      for (uint32_t token = blocks_.begin(block); token < blocks_.end(block); ++token, turn.next(num_stages_)) {
        if (first) {
          first = false;
          gpu::ptx::mbarrier_wait(shared_.batch_full, 0);
          continue;
        }
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
        load(token, turn);
      }
    });
  }

  // Scales of fp8 input, ids and weights of a row, before there is room for them: a lane's words, a wave apart.
  struct Tail {
    static constexpr uint32_t kHeld = 3;  // 96 words: 56 scales of 7168 values and eight experts
    uint32_t token = ~0u;
    uint32_t words[kHeld];
  };
  // Nothing here waits for what is fetched: ids are looked at when they are written.
  __device__ Tail fetch_tail(uint32_t token) const {
    Tail tail{token, {}};
    if (args_.num_byte_scales != 0) {
#pragma unroll
      for (uint32_t i = 0; i < Tail::kHeld; ++i)
        tail.words[i] = bytes_or_word(args_, token, i * kWave + HardwareWave::lane());
      return tail;
    }
    const uint32_t num_scales = args_.num_scale_words, num_topk = args_.num_topk;
#pragma unroll
    for (uint32_t i = 0; i < Tail::kHeld; ++i) {
      const uint32_t word = i * kWave + HardwareWave::lane(), pair = word - num_scales;
      if (word >= num_scales + 2 * num_topk) continue;
      const bool scale = word < num_scales, id = !scale && pair < num_topk;
      const void* const base = scale ? args_.scales : id ? static_cast<const void*>(args_.ids) : args_.weights;
      const int64_t at = scale ? token * args_.scale_row_stride + word * args_.scale_col_stride
                               : int64_t{token} * num_topk + (id ? pair : pair - num_topk);
      tail.words[i] = static_cast<const uint32_t*>(base)[at];
    }
    return tail;
  }
  // A word of it as it is sent: experts that there are not become -1.
  __device__ uint32_t sent_word(uint32_t word, uint32_t value) const {
    return word - args_.num_scale_words < args_.num_topk && value >= args_.owners.num_experts ? ~0u : value;
  }
  // Of the wave's row of the first block.
  __device__ Tail first_tail(uint32_t wave) const {
    const bool here = blockIdx.x < blocks_.count && blocks_.begin(blockIdx.x) + wave < blocks_.end(blockIdx.x);
    return here ? fetch_tail(blocks_.begin(blockIdx.x) + wave) : Tail{};
  }

  // Behind the payload in shared memory; waves take turns, `first` is the wave's first one. Each knows by its row before
  // that the ring is less than two rounds behind, so the parity it waits for is not that of the round before.
  __device__ void write_tails(uint32_t wave, const Tail& first) const {
    const uint32_t num_words = args_.num_scale_words + 2 * args_.num_topk, lane = HardwareWave::lane();
    Turn turn;
    uint32_t row = 0;
    each_block([&](uint32_t block) {
#pragma unroll 1
      for (uint32_t token = blocks_.begin(block); token < blocks_.end(block); ++token, ++row, turn.next(num_stages_)) {
        if (row % num_tail_waves_ != wave) continue;
        const Tail tail = token == first.token ? first : fetch_tail(token);
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.empty + turn.stage, (turn.round - 1) & 1u);
        auto* const to = reinterpret_cast<uint32_t*>(stage(turn) + args_.payload_bytes);
#pragma unroll
        for (uint32_t i = 0; i < Tail::kHeld; ++i)
          if (i * kWave + lane < num_words) to[i * kWave + lane] = sent_word(i * kWave + lane, tail.words[i]);
        for (uint32_t word = Tail::kHeld * kWave + lane; word < num_words; word += kWave)
          to[word] = bytes_or_word(args_, token, word);
        gpu::ptx::fence_async_proxy();
        HardwareWave::sync();
        if (leads()) gpu::ptx::mbarrier_arrive(shared_.full + turn.stage);
      }
    });
  }

  __device__ void store_rows() {
    Turn turn, freed, batch_turn;
    const bool many = num_stages_ >= kManyStages;
    const uint32_t leaving = many ? kRowsLeavingMany : num_stages_ >= 2 * kRowsLeaving ? kRowsLeaving : 1;
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
          if (many)
            gpu::ptx::wait_until_read<kRowsLeavingMany>();
          else if (leaving == kRowsLeaving)
            gpu::ptx::wait_until_read<kRowsLeaving>();
          else
            gpu::ptx::wait_until_read<1>();
          if (++num_stored > leaving) {
            gpu::ptx::mbarrier_arrive(shared_.empty + freed.stage);
            freed.next(num_stages_);
          }
          if (receives_) continue;
          const uint32_t behind = few ? kRowsBeforeFlagFew : many ? kRowsBeforeFlagMany : kRowsBeforeFlag;
          if (num_arrived == num_sent || shared_.sent[num_arrived % kFlags].end + behind > num_stored) continue;
          ++num_arrived;
          if (few)
            shared_.arrivals.say<kRowsBeforeFlagFew>(num_arrived);
          else if (many)
            shared_.arrivals.say<kRowsBeforeFlagMany>(num_arrived);
          else
            shared_.arrivals.say<kRowsBeforeFlag>(num_arrived);
        }
        if (!receives_ && end == blocks_.end(block)) note_rows(num_sent++, block, num_stored, batch);
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
      if (receives_) {
        if (blockIdx.x < blocks_.num_sending(num_senders_) && rank < window.num_ranks && call_.sends_to(rank))
          gpu::store_relaxed_system(done_flags(window, rank, window.rank) + blockIdx.x, uint64_t{call_.epoch} << 32);
        return;
      }
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
