// Asynchronous copies into shared memory: tiles of tensors by the copy engine (sm_90), single packets by threads (sm_80).
#pragma once

#include "gpu/ptx/mbarrier.cuh"

namespace mixlane::gpu::ptx {

// What a copy's bytes are to the L2 cache.
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000ull;
inline constexpr uint64_t kEvictNormal = 0x1000000000000000ull;
inline constexpr uint64_t kEvictLast = 0x14f0000000000000ull;

__device__ inline void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box of a tensor of two dimensions; {x, y} is its first element.
__device__ inline void copy_box_2d(void* to, const void* map, uint64_t* barrier, int32_t x, int32_t y, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], "
      "[%2], "
      "%5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}

// A box of a tensor of five dimensions.
struct BoxOrigin {
  int32_t at[5];
};

__device__ inline void copy_box_5d(void* to, const void* map, uint64_t* barrier, const BoxOrigin& o, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, "
      "%6, "
      "%7}], [%2], %8;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(o.at[0]), "r"(o.at[1]), "r"(o.at[2]), "r"(o.at[3]), "r"(o.at[4]),
      "l"(policy)
      : "memory");
}

// To the same place in every block of the cluster whose bit is set, with a signal at each block's own barrier.
__device__ inline void copy_box_5d_multicast(void* to, const void* map, uint64_t* barrier, const BoxOrigin& o,
                                             uint16_t blocks, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2], %8, %9;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(o.at[0]), "r"(o.at[1]), "r"(o.at[2]), "r"(o.at[3]), "r"(o.at[4]),
      "h"(blocks), "l"(policy)
      : "memory");
}

// The line of this address into the L2 cache.
__device__ inline void prefetch_line(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// 16 bytes by this thread, or 16 zeros.
__device__ inline void copy_packet(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

// 4 bytes by this thread, or 4 zeros.
__device__ inline void copy_word(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// The first `bytes` of 4 bytes by this thread, zeros behind them.
__device__ inline void copy_part_of_word(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// This thread's copies since the last call are a group; all of its groups but the newest kPending have landed.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Ordinary accesses to shared memory that were seen before come before the tensor cores' and the copy engine's later ones.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What other threads' copy_packet and copy_word brought and this one has learnt of by a barrier comes before its own later
// accesses through the tensor cores and the copy engine. The side that reads: no instruction, where the fence of both sides
// above is a memory barrier that waits for whatever the warp has on its way, arrivals at other blocks' barriers included.
__device__ inline void acquire_copies() {
  asm volatile("fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
}

// Global memory that other threads wrote and this one has acquired: for the copy engine's later reads.
__device__ inline void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

}  // namespace mixlane::gpu::ptx
