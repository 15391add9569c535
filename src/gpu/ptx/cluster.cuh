// Thread-block clusters of sm_90: barrier and shared memory of the other blocks.
#pragma once

#include <cstdint>

namespace mixlane::gpu::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Split barrier of all threads of the cluster: arrive publishes what was written before, wait sees what others published.
// Waves arrive and wait as a whole.
__device__ inline void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// Arrives without publishing anything: to keep the blocks together, not to hand over data.
__device__ inline void cluster_arrive_relaxed() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address, in the cluster's window, of the same shared variable in block `rank`.
__device__ inline uint32_t map_shared(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank));
  return address;
}

__device__ inline void store_cluster_packet(uint32_t address, const uint4& packet) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(packet.x), "r"(packet.y),
               "r"(packet.z), "r"(packet.w)
               : "memory");
}

__device__ inline void store_cluster_pair(uint32_t address, const uint2& pair) {
  asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(pair.x), "r"(pair.y) : "memory");
}

}  // namespace mixlane::gpu::ptx
