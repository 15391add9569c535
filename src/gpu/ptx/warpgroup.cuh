// Warpgroups of sm_90: registers, barriers among some of a block's warps, small matrices of a warp.
#pragma once

#include "gpu/ptx/mbarrier.cuh"

namespace mixlane::gpu::ptx {

inline constexpr int kWarpgroupThreads = 128;

// By all warps of a warpgroup.
template <int kCount>
__device__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Barrier `id` (1 to 15) among `threads` threads; 0 is __syncthreads().
__device__ inline void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same, and whether any of them says so.
__device__ inline bool sync_threads_or(int id, int threads, bool says) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred says, any;\n"
      "setp.ne.u32 says, %3, 0;\n"
      "bar.red.or.pred any, %1, %2, says;\n"
      "selp.u32 %0, 1, 0, any;\n"
      "}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(says))
      : "memory");
  return any != 0;
}

// Four 8x8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8; words hold values {row lane /
// 4, columns 2 (lane % 4) + {0, 1}}.
__device__ inline void store_matrices(uint32_t address, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w0), "r"(w1), "r"(w2),
               "r"(w3)
               : "memory");
}

// An 8x8 matrix of 16-bit values, transposed: lane l holds {row l / 4, columns 2 (l % 4) + {0, 1}} and then {column l / 4,
// rows 2 (l % 4) + {0, 1}}.
__device__ inline uint32_t transpose_matrix(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

}  // namespace mixlane::gpu::ptx
