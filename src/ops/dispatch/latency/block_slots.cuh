// Where the rows of a block go that has several: every wave finds it for itself behind one barrier, from what each wave has
// counted. Lane r knows what concerns rank r.
#pragma once

#include "ops/dispatch/gpu/slots.cuh"

namespace mixlane::exchange_gpu {

struct SlotsShared {
  static constexpr uint32_t kStride = kMaxWaves + 4;  // lanes that read four words each at once meet in no bank
  alignas(16) uint32_t counts[kMaxRanks][kStride];    // by each wave: rows of the tokens before the block's
  HardwareWave::Mask having[kMaxRanks];               // the batch's tokens that go to a rank
};

// The records of one row in a whole wave: lane r's for rank r, null where there is none. The own rank's is visited last.
struct LaneTargets {
  const Window& window;
  std::byte* record;
  template <class Visit>
  __device__ void each(Visit&& visit) const {
#pragma unroll 1
    for (int i = 1; i <= window.num_ranks; ++i) {
      const int r = window.rank + i < window.num_ranks ? window.rank + i : window.rank + i - window.num_ranks;
      auto* const to = reinterpret_cast<std::byte*>(HardwareWave::shuffle(reinterpret_cast<unsigned long long>(record), r));
      if (to != nullptr) visit(to);
    }
  }
};

class BlockSlots {
 public:
  // The first wave looks at the block's first tokens, the others at the tokens before.
  __device__ BlockSlots(const DispatchKernelArgs& args, const Share& share) : args_(args), share_(share) {
    const bool first = first_wave();
    at_ = first ? share.begin : (HardwareWave::index_in_block() - 1) * kWave;
    end_ = first ? min(share.begin + kWave, share.end) : share.begin;
    if (static_cast<int>(lane()) < args.exchange.window.num_ranks)
      records_ = record_at(args.exchange.window, static_cast<int>(lane()), args.exchange.window.rank, 0);
  }

  // The next ids.
  __device__ void fetch() {
#pragma unroll
    for (uint32_t i = 0; i < kFetched; ++i) fetched_[i] = PlainIds::of(args_, token(i), args_.plain_ids && token(i) < end_);
  }

  // The first result that is looked at.
  __device__ void look() {
#pragma unroll
    for (uint32_t i = 0; i < kFetched; ++i) ranks_[i] = ranks_of<false>(args_, fetched_[i]);
  }

  // Before the barrier, when looked. All threads of the block.
  __device__ void count(SlotsShared& shared) {
    const uint32_t wave = HardwareWave::index_in_block(), num_waves = blockDim.x / kWave;
    HardwareWave::Mask having = 0;
    uint32_t count = count_fetched(having);
    const HardwareWave::Mask first_having = having;
#pragma unroll 1
    for (at_ += kFetched * step(); at_ < end_ && !first_wave(); at_ += kFetched * step()) {
      fetch();
      look();
      count += count_fetched(having);
    }
    if (lane() >= kMaxRanks) return;
    shared.counts[lane()][wave] = first_wave() ? 0 : count;
    if (first_wave()) shared.having[lane()] = first_having;
#pragma unroll 1
    for (uint32_t none = wave + num_waves; none < kMaxWaves; none += num_waves) shared.counts[lane()][none] = 0;
  }

  // Behind it.
  __device__ void add_up(const SlotsShared& shared, const Call& call) {
    const Window& window = args_.exchange.window;
    const int rank = static_cast<int>(lane());
    if (rank >= kMaxRanks) return;
    having_ = shared.having[rank];
    const auto* const fours = reinterpret_cast<const uint4*>(shared.counts[rank]);
#pragma unroll
    for (uint32_t i = 0; i < kMaxWaves / 4; ++i) next_ += fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    if (rank < window.num_ranks && !call.sends_to(rank)) records_ = nullptr;
  }

  // The tokens from `first` on, instead of those before.
  __device__ void next_batch(uint32_t first, SlotsShared& shared) {
    const uint32_t token = first + lane();
    next_ += static_cast<uint32_t>(HardwareWave::count(having_));
    __syncthreads();  // all waves know the batch before
    if (first_wave()) {
      const HardwareWave::Mask having = tokens_by_rank(args_, token < share_.end ? ranks_of(args_, token) : 0);
      if (lane() < kMaxRanks) shared.having[lane()] = having;
    }
    __syncthreads();
    having_ = lane() < kMaxRanks ? shared.having[lane()] : 0;
  }

  // Of the batch's `row`th token.
  __device__ LaneTargets targets(uint32_t row) const {
    const HardwareWave::Mask bit = HardwareWave::Mask{1} << row;
    const uint32_t slot = next_ + static_cast<uint32_t>(HardwareWave::count(having_ & (bit - 1)));
    const bool sent = (having_ & bit) != 0 && slot < capacity() && records_ != nullptr;
    return {args_.exchange.window, sent ? records_ + slot * args_.exchange.window.record_stride : nullptr};
  }

  // For combine: slots of the batch's tokens, which begin at `first`. One wave.
  __device__ void keep(uint32_t first) const {
    const int num_ranks = args_.exchange.window.num_ranks;
    const uint32_t token = first + lane();
    int32_t* const kept = args_.exchange.routing.slots + int64_t{token} * num_ranks;
#pragma unroll 1
    for (int r = 0; r < num_ranks; ++r) {
      const HardwareWave::Mask having = HardwareWave::shuffle(records_ != nullptr ? having_ : 0, r);
      const uint32_t below = static_cast<uint32_t>(HardwareWave::count(having & HardwareWave::lanes_below()));
      const uint32_t slot = HardwareWave::shuffle(next_, r) + below;
      const bool sent = (having >> lane() & 1u) != 0 && slot < capacity();
      if (token < share_.end) kept[r] = sent ? static_cast<int32_t>(slot) : -1;
    }
  }

  // For the lane's rank, up to the end of the batch, those without room not among them.
  __device__ uint32_t num_rows() const {
    return min(next_ + static_cast<uint32_t>(HardwareWave::count(having_)), capacity());
  }

 private:
  static constexpr uint32_t kFetched = 3;  // tokens of those before, by each lane at once

  __device__ static uint32_t lane() { return HardwareWave::lane(); }
  __device__ static bool first_wave() { return HardwareWave::index_in_block() == 0; }
  __device__ uint32_t capacity() const { return static_cast<uint32_t>(args_.exchange.window.capacity); }
  __device__ static uint32_t step() { return blockDim.x - kWave; }

  __device__ uint32_t token(uint32_t i) const { return at_ + i * step() + lane(); }
  // What is not usual.
  __device__ void look_up() {
#pragma unroll
    for (uint32_t i = 0; i < kFetched; ++i)
      if (token(i) < end_)
        ranks_[i] = ranks_of_ids<1>(args_.ids + int64_t{token(i)} * args_.num_topk, args_.num_topk, args_.owners.table,
                                    args_.owners);
  }

  // Lane r: how many of the fetched tokens go to rank r, and which of the first ones do.
  __device__ uint32_t count_fetched(HardwareWave::Mask& first) {
    if (!args_.plain_ids) look_up();
    uint32_t count = 0;
#pragma unroll 1
    for (int r = 0; r < args_.exchange.window.num_ranks; ++r) {
      uint32_t of_rank = 0;
      HardwareWave::Mask having[kFetched];
#pragma unroll
      for (uint32_t i = 0; i < kFetched; ++i) {
        having[i] = HardwareWave::ballot((ranks_[i] >> r & 1u) != 0);
        of_rank += static_cast<uint32_t>(HardwareWave::count(having[i]));
      }
      if (static_cast<int>(lane()) != r) continue;
      count = of_rank;
      first = having[0];
    }
    return count;
  }

  const DispatchKernelArgs& args_;
  const Share& share_;
  uint32_t ranks_[kFetched];
  PlainIds fetched_[kFetched];  // of tokens `step()` apart from at_ + lane() on, up to end_
  uint32_t at_;
  uint32_t end_;
  std::byte* records_ = nullptr;  // the lane's rank's first of this rank, if it is sent to
  uint32_t next_ = 0;             // the lane's rank's next slot
  HardwareWave::Mask having_ = 0;
};

}  // namespace mixlane::exchange_gpu
