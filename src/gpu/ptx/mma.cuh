// Matrix products of a wave through the tensor cores (sm_80 on).
#pragma once

#include <cstdint>

namespace mixlane::gpu::ptx {

// d[16, 8] += a[16, 16] * b[16, 8], bf16. Lane l holds of a rows l / 4 + {0, 8}, columns 2 (l % 4) + {0, 1} of both, then
// columns 8 further; of b column l / 4, rows like a's columns; of d rows l / 4 + {0, 8}, columns 2 (l % 4) + {0, 1}.
__device__ inline void mma_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace mixlane::gpu::ptx
