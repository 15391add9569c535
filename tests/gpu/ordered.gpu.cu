#include "gpu/device.hpp"
#include "gpu/launch.hpp"
#include "ordered.hpp"

namespace mixlane::test {
namespace {

constexpr uint64_t kPatienceNs = 1'000'000'000;

template <gpu::Scope kScope>
__device__ void wait_for(const uint32_t* word, uint32_t value, uint64_t deadline_ns) {
  while (gpu::load_relaxed<kScope>(word) < value && gpu::clock_ns() < deadline_ns) {
  }
  // What was released before the value was written is seen from here on.
  static_cast<void>(gpu::load_acquire<kScope>(word));
}

__device__ uint32_t word_of(int round, uint32_t thread) { return static_cast<uint32_t>(round) * 1000 + thread; }

template <gpu::Scope kScope>
__global__ void pass_messages(int rounds, Mailbox* mailbox) {
  const uint32_t thread = threadIdx.x;
  const bool writes = blockIdx.x == 0;
  const uint64_t begin = gpu::clock_ns();
  const uint64_t deadline = begin + kPatienceNs;
  // Both run before the first message.
  if (thread == 0) {
    gpu::fetch_add_release<kScope>(&mailbox->started, 1);
    wait_for<kScope>(&mailbox->started, 2, deadline);
  }
  for (int round = 1; round <= rounds; ++round) {
    if (writes) {
      mailbox->payload[thread] = word_of(round, thread);
      __syncthreads();
      if (thread == 0) {
        gpu::store_release<kScope>(&mailbox->flag, static_cast<uint32_t>(round));
        wait_for<kScope>(&mailbox->acknowledged, static_cast<uint32_t>(round), deadline);
      }
    } else {
      if (thread == 0) wait_for<kScope>(&mailbox->flag, static_cast<uint32_t>(round), deadline);
      __syncthreads();
      if (mailbox->payload[thread] != word_of(round, thread)) atomicAdd(&mailbox->wrong, 1u);
      __syncthreads();
      if (thread == 0) gpu::fetch_add_release<kScope>(&mailbox->acknowledged, 1);
    }
    __syncthreads();
  }
  if (thread != 0) return;
  mailbox->begin_ns[blockIdx.x] = begin;
  mailbox->end_ns[blockIdx.x] = gpu::clock_ns();
}

// A bound in case the clock stands still.
__device__ void spin_ns(uint64_t ns) {
  const uint64_t begin = gpu::clock_ns();
  for (int turn = 0; turn < 100'000'000 && gpu::clock_ns() - begin < ns; ++turn) {
  }
}

__global__ void spin(uint64_t ns) { spin_ns(ns); }

__global__ void write_late(uint64_t ns, uint32_t word, OverlapTimes* times) {
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  spin_ns(ns);
  times->first_end_ns = gpu::clock_ns();
  gpu::store_relaxed<gpu::Scope::device>(&times->word, word);
}

__global__ void read_early(OverlapTimes* times) {
  const uint64_t begin = gpu::clock_ns();
  gpu::wait_for_previous_kernel();
  times->second_begin_ns = begin;
  times->seen = times->word;
}

}  // namespace

void launch_messages(bool system_scope, int rounds, Mailbox* mailbox, Stream stream) {
  const auto kernel = system_scope ? pass_messages<gpu::Scope::system> : pass_messages<gpu::Scope::device>;
  gpu::launch(kernel, {.variant = "messages", .num_blocks = 2, .num_threads = kMessageWords, .cooperative = true}, stream,
              rounds, mailbox);
}

void launch_spin(uint64_t ns, Stream stream) { gpu::launch(spin, {.variant = "spin"}, stream, ns); }

void launch_overlapping(uint64_t ns, uint32_t word, bool overlap, OverlapTimes* times, Stream stream) {
  gpu::launch(write_late, {.variant = "write late"}, stream, ns, word, times);
  gpu::launch(read_early, {.variant = "read early", .overlaps_previous = overlap}, stream, times);
}

}  // namespace mixlane::test
