// Reductions across the lanes of a wave. Results are the same in every lane.
#pragma once

#include "gpu/device.hpp"

namespace mixlane::gpu {

// The largest value of the hardware's wave, by one instruction where there is one.
#if !defined(MIXLANE_HIP) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
inline constexpr bool kHasWaveMax = true;
__device__ inline uint32_t hardware_wave_max(uint32_t value) { return __reduce_max_sync(~0u, value); }
#else
inline constexpr bool kHasWaveMax = false;
__device__ inline uint32_t hardware_wave_max(uint32_t value) { return value; }
#endif

template <int kSize>
__device__ uint32_t wave_max(uint32_t value) {
  if constexpr (kHasWaveMax && kSize == kHardwareWave) {
    return hardware_wave_max(value);
  } else {
    using W = Wave<kSize>;
#pragma unroll
    for (int distance = kSize / 2; distance > 0; distance /= 2)
      value = max(value, W::shuffle(value, static_cast<int>(W::lane() ^ static_cast<uint32_t>(distance))));
    return value;
  }
}

template <int kSize, class T>
__device__ T wave_sum(T value) {
  using W = Wave<kSize>;
#pragma unroll
  for (int distance = kSize / 2; distance > 0; distance /= 2) {
    value += W::shuffle(value, static_cast<int>(W::lane() ^ static_cast<uint32_t>(distance)));
  }
  return value;
}

// Floats as integers of the same order.
__device__ inline uint32_t ordered_key(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

__device__ inline float value_of_key(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

}  // namespace mixlane::gpu
