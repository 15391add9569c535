// combine.throughput: received rows to their owners, by three waves of each block.
#pragma once

#include "ops/dispatch/combine_bulk.cuh"

namespace mixlane::exchange_gpu::bulk_combine {

// Groups of rows share a flag's way across the link. Few rows are announced one by one, so that their owners need not wait
// for others.
__device__ inline Groups pushed_groups(uint32_t num_rows) {
  const uint32_t each = num_rows / gridDim.x;
  return {num_rows, each >= 64 ? kMaxGroup : each >= 16 ? 2u : 1u};
}

class Pusher {
 public:
  __device__ Pusher(const CombineKernelArgs& args, const Call& call, const ReceivedRange& range, const Rings& rings,
                    std::byte* stages, BulkShared& shared)
      : args_(args),
        call_(call),
        range_(range),
        rings_(rings),
        groups_(pushed_groups(range.total())),
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
    uint32_t num_stored = 0, num_groups = 0;
    for (;; taken.next(kTaken)) {
      gpu::ptx::mbarrier_wait(shared_.taken_full + taken.stage, taken.round & 1u);
      const uint32_t group = shared_.taken[taken.stage];
      if (group >= groups_.count) break;
#pragma unroll 1
      for (uint32_t row = groups_.begin(group); row < groups_.end(group); ++row, turn.next(rings_.num_rows)) {
        int owner = 0, slot = 0;
        range_.find(row, owner, slot);
        if (!leads()) continue;
        gpu::ptx::mbarrier_wait(shared_.row_full + turn.stage, turn.round & 1u);
        gpu::ptx::bulk_store(partial_at(window, owner, window.rank, slot), stage(turn), rings_.row_bytes);
        gpu::ptx::end_store_group();
        if (leaving == 2)
          gpu::ptx::wait_until_read<2>();
        else
          gpu::ptx::wait_until_read<1>();
        if (++num_stored <= leaving) continue;
        gpu::ptx::mbarrier_arrive(shared_.row_empty + freed.stage);
        freed.next(rings_.num_rows);
      }
      if (leads()) {
        while (num_groups - *static_cast<volatile uint32_t*>(&shared_.num_flagged) >= kFlagged) {
        }
        shared_.stored[num_groups % kFlagged] = group;
        // The group before: by now its stores have arrived. Behind a smaller one, the last of all, nothing comes.
        if (groups_.end(group) - groups_.begin(group) == groups_.size) {
          if (groups_.size == 4)
            say_arrived<4>(num_groups);
          else if (groups_.size == 2)
            say_arrived<2>(num_groups);
          else
            say_arrived<1>(num_groups);
        }
        ++num_groups;
        gpu::ptx::mbarrier_arrive(shared_.taken_empty + taken.stage);
      }
      HardwareWave::sync();
    }
    if (!leads()) return;
    say_arrived<0>(num_groups);
    *static_cast<volatile bool*>(&shared_.all_arrived) = true;
  }

  // A wave of its own: making sure that an owner that sees the flag sees the row takes a while.
  __device__ void flag() {
    const Window& window = args_.exchange.window;
    // Lanes are words of the group's flags.
    const uint32_t which = HardwareWave::lane() / kRowParts, word = HardwareWave::lane() % kRowParts;
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
        const uint32_t group = shared_.stored[flagged % kFlagged], first = groups_.begin(group);
        uint32_t* flag = nullptr;
        for (uint32_t row = first; row < groups_.end(group); ++row) {
          int owner = 0, slot = 0;
          range_.find(row, owner, slot);
          if (which == row - first) flag = row_flag(window, owner, window.rank, slot) + word;
        }
        if (flag != nullptr) gpu::store_relaxed<Scope::system>(flag, call_.epoch);
      }
      HardwareWave::sync();
      *static_cast<volatile uint32_t*>(&shared_.num_flagged) = flagged;
    } while (!all);
  }

 private:
  __device__ std::byte* stage(const Turn& turn) const { return stages_ + int64_t{turn.stage} * rings_.row_bytes; }

  // One thread: the stores of so many groups are done, all but those of the kNewer latest rows.
  template <int kNewer>
  __device__ void say_arrived(uint32_t num_groups) {
    gpu::ptx::wait_for_stores<kNewer>();
    __threadfence_block();
    *static_cast<volatile uint32_t*>(&shared_.num_arrived) = num_groups;
  }

  const CombineKernelArgs& args_;
  const Call& call_;
  const ReceivedRange& range_;
  const Rings& rings_;
  Groups groups_;
  std::byte* stages_;
  BulkShared& shared_;
};

}  // namespace mixlane::exchange_gpu::bulk_combine
