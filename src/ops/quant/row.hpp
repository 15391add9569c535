// One row quantised in pieces that share a scale: what the exchange does on the way.
#pragma once

#include <algorithm>
#include <bit>

#include "core/numeric.hpp"
#include "ops/quant/runs.hpp"

namespace mixlane::quant {

inline constexpr uint8_t kE8m0Nan = 0xff;

inline float e4m3_scale(Magnitude amax) { return std::max(amax.largest, 1e-10f) / kE4m3Max; }

// floor(log2(amax)) - 2 as an e8m0 byte. Subnormal magnitudes are below its range, so the exponent field will do.
inline uint8_t e2m1_scale(Magnitude amax) {
  if (amax.has_nan) return kE8m0Nan;
  const auto exponent = static_cast<int>(std::bit_cast<uint32_t>(amax.largest) >> 23);
  return static_cast<uint8_t>(std::max(exponent - 2, 0));
}

// values / scale, zeros if the scale is NaN.
inline void divide_by_e8m0(const float* values, int64_t count, uint8_t scale, float* out) {
  if (scale == kE8m0Nan)
    std::fill_n(out, count, 0.0f);
  else
    divide(values, count, e8m0_to_f32(scale), out);
}

// As quantize() with ScaleGroup::group_1x128 (group = 128) or row (group = cols), for a bf16 or f32 row.
template <class Value>
void quantize_row_e4m3(const Value* row, int64_t cols, int64_t group, uint8_t* codes, float* scales) {
  constexpr DType kType = std::is_same_v<Value, float> ? DType::f32 : DType::bf16;
  constexpr int64_t kChunk = 1024;
  float buffer[kChunk], scaled[kChunk];
  for (int64_t begin = 0; begin < cols; begin += group) {
    const int64_t end = std::min(cols, begin + group);
    Magnitude amax{};
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = std::min(kChunk, end - at);
      amax.largest = std::max(amax.largest, magnitude(as_f32(row + at, kType, count, buffer), count).largest);
    }
    const float scale = *scales++ = e4m3_scale(amax);
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = std::min(kChunk, end - at);
      divide(as_f32(row + at, kType, count, buffer), count, scale, scaled);
      encode(scaled, count, DType::fp8_e4m3, codes + at);
    }
  }
}

// As quantize() with ScaleGroup::group_1x32, for a bf16 row of an even number of values.
inline void quantize_row_e2m1(const uint16_t* row, int64_t cols, uint8_t* codes, uint8_t* scales) {
  constexpr int64_t kGroup = 32;
  float buffer[kGroup], scaled[kGroup];
  for (int64_t at = 0; at < cols; at += kGroup) {
    const int64_t count = std::min(kGroup, cols - at);
    const float* const values = as_f32(row + at, DType::bf16, count, buffer);
    divide_by_e8m0(values, count, *scales = e2m1_scale(magnitude(values, count)), scaled);
    ++scales;
    encode(scaled, count, DType::fp4_e2m1, codes + at / 2);
  }
}

}  // namespace mixlane::quant
