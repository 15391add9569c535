#include "ops/experts/decode.hpp"

#include <algorithm>
#include <bit>

#include "core/numeric.hpp"
#include "core/simd.hpp"

namespace mixlane {
namespace {

// Of a value that bf16 holds.
[[gnu::always_inline]] inline uint16_t exact_bf16(float value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

}  // namespace

MIXLANE_CPU_LEVELS void decode_e4m3(const uint8_t* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = exact_bf16(e4m3_to_f32(in[i]));
}

MIXLANE_CPU_LEVELS void decode_mxfp4(const uint8_t* in, const uint8_t* scales, uint16_t* out, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += 32) {
    const float scale = e8m0_to_f32(scales[begin / 32]);
    const int64_t bytes = std::min<int64_t>(32, count - begin) / 2;
    for (int64_t i = 0; i < bytes; ++i) {
      const uint8_t byte = in[begin / 2 + i];
      out[begin + 2 * i] = exact_bf16(e2m1_to_f32(byte & 15u) * scale);
      out[begin + 2 * i + 1] = exact_bf16(e2m1_to_f32(byte >> 4) * scale);
    }
  }
}

}  // namespace mixlane
