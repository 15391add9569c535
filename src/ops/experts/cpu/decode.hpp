// Small formats to bf16, many values at a time. Every result is exact.
#pragma once

#include <cstdint>

namespace mixlane {

// `count` is a multiple of 16.
void decode_e4m3(const uint8_t* in, uint16_t* out, int64_t count);
// `scales`: one e8m0 per 32 values.
void decode_mxfp4(const uint8_t* in, const uint8_t* scales, uint16_t* out, int64_t count);

}  // namespace mixlane
