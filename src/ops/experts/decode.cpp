#include "ops/experts/decode.hpp"

#include <algorithm>

#include "core/numeric.hpp"
#include "core/simd.hpp"
#include "ops/experts/lanes.hpp"

namespace mixlane {

MIXLANE_CPU_LEVELS void decode_e4m3(const uint8_t* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    F32x16 values;
    E4m3Decoder::load(in + i, &values);
    const U16x16 bits = __builtin_convertvector(reinterpret_cast<U32x16>(values) >> 16, U16x16);
    std::memcpy(out + i, &bits, sizeof(bits));
  }
}

MIXLANE_CPU_LEVELS void decode_mxfp4(const uint8_t* in, const uint8_t* scales, uint16_t* out, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += E2m1Decoder::kStep) {
    const int64_t step = std::min(E2m1Decoder::kStep, count - begin);
    const float scale = e8m0_to_f32(scales[begin / E2m1Decoder::kStep]);
    uint8_t tail[E2m1Decoder::kBytes] = {};
    const uint8_t* from = in + begin / 2;
    if (step < E2m1Decoder::kStep) from = std::copy_n(from, step / 2, tail) - step / 2;
    F32x16 values[2];
    E2m1Decoder::load(from, values);
    const U32x16 even = reinterpret_cast<U32x16>(values[0] * scale) >> 16;
    const U32x16 odd = reinterpret_cast<U32x16>(values[1] * scale) & 0xffff0000u;
    const U32x16 pairs = even | odd;  // little endian: the even value comes first
    std::memcpy(out + begin, &pairs, static_cast<size_t>(step) * 2);
  }
}

}  // namespace mixlane
