// Thread-block clusters of sm_90: barrier and shared memory of the other blocks.
#pragma once

#include <cstdint>

namespace mixlane::gpu::ptx {

// Split barrier of all threads of the cluster, by whole waves. It hands nothing over but the barriers that
// init_barrier() made.
__device__ inline void cluster_arrive() {
  __syncwarp();
  asm volatile("fence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive.relaxed.aligned;" ::: "memory");
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

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A barrier in shared memory that waits for so many bytes of store_async().
__device__ inline void init_barrier(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.init.shared.b64 [%0], 1;\n"
      "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits for a barrier that is used once; sees what its stores wrote.
__device__ inline void wait_barrier(uint64_t* barrier) {
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
