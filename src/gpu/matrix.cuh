// Small bf16 matrix products of a hardware wave, through tensor or matrix cores: rows of 16 times columns of 16.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// d[16, 16] += a[16, 16] * b[16, 16]: a and b are rows of k, `pitch` 16-bit values apart, in shared memory and aligned to
// 8 bytes. The wave's threads hold kValues of d each: d[row(i), column(i)].
class MatrixTile {
 public:
#if defined(MIXLANE_HIP)
  static constexpr int kValues = 4;
  __device__ static uint32_t row(int i) { return threadIdx.x % kHardwareWave / 16 * 4 + static_cast<uint32_t>(i); }
  __device__ static uint32_t column(int) { return threadIdx.x % 16; }

  __device__ void add_product(const uint16_t* a, const uint16_t* b, uint32_t pitch) {
    using Bits = short __attribute__((ext_vector_type(4)));
    using Sums = float __attribute__((ext_vector_type(4)));
    const uint32_t at = threadIdx.x % 16 * pitch + threadIdx.x % kHardwareWave / 16 * 4;
    const Sums sums = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(*reinterpret_cast<const Bits*>(a + at),
                                                                *reinterpret_cast<const Bits*>(b + at),
                                                                Sums{value[0], value[1], value[2], value[3]}, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] = sums[i];
  }
#else
  static constexpr int kValues = 8;
  __device__ static uint32_t row(int i) { return threadIdx.x % 32 / 4 + static_cast<uint32_t>(i / 2 % 2) * 8; }
  __device__ static uint32_t column(int i) { return threadIdx.x % 4 * 2 + static_cast<uint32_t>(i % 2 + i / 4 * 8); }

  __device__ void add_product(const uint16_t* a, const uint16_t* b, uint32_t pitch) {
    const uint32_t at = threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4 * 2;
    const uint32_t a0 = word(a + at), a1 = word(a + at + 8 * pitch), a2 = word(a + at + 8),
                   a3 = word(a + at + 8 * pitch + 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint16_t* columns = b + half * 8 * pitch + at;
      float* d = value + 4 * half;
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
          "%3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(word(columns)), "r"(word(columns + 8)));
    }
  }

 private:
  __device__ static uint32_t word(const uint16_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

 public:
#endif
  float value[kValues] = {};
};

}  // namespace mixlane::gpu
