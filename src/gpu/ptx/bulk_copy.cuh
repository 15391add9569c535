// Bulk copies of sm_90 between global and shared memory, done by the copy unit on behalf of one thread. Addresses and sizes
// are multiples of 16 bytes.
#pragma once

#include "gpu/ptx/mbarrier.cuh"

namespace mixlane::gpu::ptx {

// `barrier` expects the bytes already.
__device__ inline void bulk_load_expected(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// `barrier` changes its phase when all bytes are there.
__device__ inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  mbarrier_arrive_expect(barrier, bytes);
  bulk_load_expected(shared, global, bytes, barrier);
}

__device__ inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}
// The stores since the last call are a group.
__device__ inline void end_store_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All groups but the latest kNewer have left shared memory.
template <int kNewer>
__device__ void wait_until_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewer) : "memory");
}
// All of them but the latest kNewer are done and may be announced.
template <int kNewer>
__device__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kNewer) : "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}
// Between this thread's own accesses to memory and bulk copies of the same bytes.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async;" ::: "memory"); }

}  // namespace mixlane::gpu::ptx
