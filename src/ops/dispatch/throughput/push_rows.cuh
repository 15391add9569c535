// combine.throughput: received rows to their owners, by three waves of each block.
#pragma once

#include "ops/dispatch/throughput/combine_bulk.cuh"

namespace mixlane::exchange_gpu::bulk_combine {

class Pusher {
 public:
  __device__ Pusher(const CombineKernelArgs& args, const Call& call, const ReceivedRange& range, const Rings& rings,
                    std::byte* stages, BulkShared& shared)
      : args_(args),
        call_(call),
        range_(range),
        rings_(rings),
        rows_each_(range.total() / gridDim.x),
        groups_(range.total(), rows_each_ >= 2 * kManyRows ? 4
                               : rows_each_ >= kManyRows   ? 2
                                                           : 1),
        stages_(stages),
        shared_(shared) {}

  // Takes groups, and loads their rows.
  __device__ void load(uint32_t* counter) {
    const int64_t capacity = args_.exchange.window.capacity;
    Turn turn, taken;
    uint32_t next = blockIdx.x;
    for (;; taken.next(kTaken)) {
      const uint32_t group = HardwareWave::shuffle(next, 0);
      if (leads()) {
        if (taken.round != 0) gpu::ptx::mbarrier_wait(shared_.taken_empty + taken.stage, (taken.round - 1) & 1u);
        shared_.taken[taken.stage] = group;
        gpu::ptx::mbarrier_arrive(shared_.taken_full + taken.stage);
      }
      if (group >= groups_.count) return;
      next = Groups::take(counter);
      if (args_.exchange.jitter_ns != 0) spin_a_little(args_.exchange, call_.number + 7919 * group);
#pragma unroll 1
      for (uint32_t row = groups_.begin(group); row < groups_.end(group); ++row, turn.next(rings_.num_rows)) {
        int owner = 0, slot = 0;
        range_.find(row, owner, slot);
        if (!leads()) continue;
        if (turn.round != 0) gpu::ptx::mbarrier_wait(shared_.row_empty + turn.stage, (turn.round - 1) & 1u);
        gpu::ptx::bulk_load(stage(turn), args_.rows.data + (owner * capacity + slot) * args_.rows.stride, rings_.row_bytes,
                            shared_.row_full + turn.stage);
      }
      HardwareWave::sync();
    }
  }

  __device__ void store() {
    const Window& window = args_.exchange.window;
    Turn turn, freed, taken;
    const uint32_t leaving = rings_.num_rows >= 5 ? 2 : 1;
    // Rows under way behind one whose arrival is waited for. Few multiprocessors need more of them to fill the link.
    const bool few = rows_each_ >= kManyRows;
    uint32_t num_stored = 0;
    for (;; taken.next(kTaken)) {
      gpu::ptx::mbarrier_wait(shared_.taken_full + taken.stage, taken.round & 1u);
      const uint32_t group = shared_.taken[taken.stage];
      if (group >= groups_.count) break;
      // Of what this block has yet to store, half.
      const uint32_t half = (groups_.total - groups_.begin(group)) / gridDim.x / 2;
      if (leads()) *static_cast<volatile uint32_t*>(&shared_.arrivals.together) = max(min(half, kTogether), 1u);
#pragma unroll 1
      for (uint32_t row = groups_.begin(group); row < groups_.end(group); ++row, turn.next(rings_.num_rows)) {
        int owner = 0, slot = 0;
        range_.find(row, owner, slot);
        if (!leads()) continue;
        shared_.arrivals.wait_for_flags(num_stored + 1, kFlags);
        shared_.flag[num_stored % kFlags] = row_flag(window, owner, window.rank, slot);
        gpu::ptx::mbarrier_wait(shared_.row_full + turn.stage, turn.round & 1u);
        gpu::ptx::bulk_store(partial_at(window, owner, window.rank, slot), stage(turn), rings_.row_bytes);
        gpu::ptx::end_store_group();
        if (leaving == 2)
          gpu::ptx::wait_until_read<2>();
        else
          gpu::ptx::wait_until_read<1>();
        if (++num_stored > leaving) {
          gpu::ptx::mbarrier_arrive(shared_.row_empty + freed.stage);
          freed.next(rings_.num_rows);
        }
        if (few && num_stored > kBehindFew && row + 1 == groups_.end(group))
          shared_.arrivals.say<kBehindFew>(num_stored - kBehindFew);
        else if (!few && num_stored > kBehind)
          shared_.arrivals.say<kBehind>(num_stored - kBehind);
      }
      HardwareWave::sync();
      if (leads()) gpu::ptx::mbarrier_arrive(shared_.taken_empty + taken.stage);
    }
    if (leads()) shared_.arrivals.say_last(num_stored);
  }

  // A wave of its own: lanes are words of rows' flags.
  __device__ void flag() {
    const uint32_t lane = HardwareWave::lane();
    shared_.arrivals.flag_all([&](uint32_t first, uint32_t end) {
      for (uint32_t row = first + lane / kRowParts; row < end; row += kWave / kRowParts)
        gpu::store_relaxed<Scope::system>(shared_.flag[row % kFlags] + lane % kRowParts, call_.epoch);
    });
  }

 private:
  __device__ std::byte* stage(const Turn& turn) const { return stages_ + int64_t{turn.stage} * rings_.row_bytes; }

  const CombineKernelArgs& args_;
  const Call& call_;
  const ReceivedRange& range_;
  const Rings& rings_;
  uint32_t rows_each_;
  Groups groups_;
  std::byte* stages_;
  BulkShared& shared_;
};

}  // namespace mixlane::exchange_gpu::bulk_combine
