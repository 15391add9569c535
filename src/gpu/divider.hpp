// Division by a divisor that the host knows: a multiplication and a shift on the device (Granlund and Montgomery).
#pragma once

#include <cstdint>

namespace mixlane::gpu {

// Divides numbers below 2^31.
struct Divider {
  uint32_t divisor = 1;
  uint32_t magic = 1;
  uint32_t shift = 0;

  static Divider by(uint32_t divisor) {
    Divider result{divisor, 0, 0};
    while ((uint64_t{1} << result.shift) < divisor) ++result.shift;
    result.magic = static_cast<uint32_t>((((uint64_t{1} << result.shift) - divisor) << 32) / divisor + 1);
    return result;
  }
};

#if defined(__CUDACC__) || defined(__HIPCC__)
__device__ inline uint32_t divide(uint32_t number, const Divider& by) {
  const auto high = static_cast<uint32_t>(uint64_t{number} * by.magic >> 32);
  return (high + number) >> by.shift;
}
#endif

}  // namespace mixlane::gpu
