// One row to e4m3 in pieces that share a scale: what dispatch does on the way.
#pragma once

#include <algorithm>

#include "core/numeric.hpp"
#include "ops/quant/runs.hpp"

namespace mixlane::quant {

// As quantize() with ScaleGroup::group_1x128 (group = 128) or row (group = cols), for a bf16 row.
inline void quantize_row_e4m3(const uint16_t* row, int64_t cols, int64_t group, uint8_t* codes, float* scales) {
  constexpr int64_t kChunk = 1024;
  float buffer[kChunk];
  for (int64_t begin = 0; begin < cols; begin += group) {
    const int64_t end = std::min(cols, begin + group);
    float amax = 1e-10f;
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = std::min(kChunk, end - at);
      amax = std::max(amax, magnitude(as_f32(row + at, DType::bf16, count, buffer), count).largest);
    }
    const float scale = amax / kE4m3Max;
    *scales++ = scale;
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = std::min(kChunk, end - at);
      divide(as_f32(row + at, DType::bf16, count, buffer), count, scale, buffer);
      encode(buffer, count, DType::fp8_e4m3, codes + at);
    }
  }
}

}  // namespace mixlane::quant
