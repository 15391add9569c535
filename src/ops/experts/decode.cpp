#include "ops/experts/decode.hpp"

#include <algorithm>
#include <bit>

#include "core/numeric.hpp"
#include "core/simd.hpp"

namespace mixlane {
namespace {

// 2 * e2m1 as f32: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives, by integer arithmetic that vectorises.
[[gnu::always_inline]] inline float twice_e2m1(uint32_t nibble) {
  const uint32_t exponent = (nibble >> 1) & 3u;
  const uint32_t mantissa = (nibble & 1u) + (exponent != 0 ? 2u : 0u);
  const uint32_t shift = exponent > 1 ? exponent - 1 : 0;
  const auto magnitude = static_cast<float>(static_cast<int32_t>(mantissa << shift));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | (nibble & 8u) << 28);
}

}  // namespace

MIXLANE_CPU_LEVELS void decode_e4m3(const uint8_t* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = in[i] & 0x7fu;
    const uint32_t sign = (in[i] & 0x80u) << 8;
    // As in e4m3_to_f32, without a branch.
    const uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f) >> 16;
    out[i] = static_cast<uint16_t>(sign | (magnitude == 0x7fu ? 0x7fc0u : bits));
  }
}

MIXLANE_CPU_LEVELS void decode_mxfp4(const uint8_t* in, const uint8_t* scales, uint16_t* out, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += 32) {
    const float half_scale = 0.5f * e8m0_to_f32(scales[begin / 32]);
    const int64_t bytes = std::min<int64_t>(32, count - begin) / 2;
    for (int64_t i = 0; i < bytes; ++i) {
      const uint32_t byte = in[begin / 2 + i];
      const float low = twice_e2m1(byte & 15u) * half_scale;
      const float high = twice_e2m1(byte >> 4) * half_scale;
      out[begin + 2 * i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(low) >> 16);
      out[begin + 2 * i + 1] = static_cast<uint16_t>(std::bit_cast<uint32_t>(high) >> 16);
    }
  }
}

}  // namespace mixlane
