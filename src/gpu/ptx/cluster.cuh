// Thread-block clusters of sm_90: barrier and shared memory of the other blocks.
#pragma once

#include "gpu/ptx/mbarrier.cuh"

namespace mixlane::gpu::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Split barrier of all threads of the cluster, by whole waves: arrive publishes what was written before, wait sees what
// others published.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
// Hands nothing over but barriers behind mbarrier_init_fence().
__device__ inline void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address, in the cluster's window, of the same shared variable in block `rank`.
__device__ inline uint32_t map_shared(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}

// Until the first phase of a barrier has ended; sees what other blocks' store_async() wrote.
__device__ inline void mbarrier_wait_cluster(uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier))
      : "memory");
}

// Stores that count themselves at a barrier of the block they go to; both addresses by map_shared().
__device__ inline void store_async(uint32_t address, const uint4& packet, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
               "r"(packet.x), "r"(packet.y), "r"(packet.z), "r"(packet.w), "r"(barrier)
               : "memory");
}
__device__ inline void store_async(uint32_t address, const uint2& pair, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "r"(pair.x), "r"(pair.y), "r"(barrier)
               : "memory");
}

}  // namespace mixlane::gpu::ptx
