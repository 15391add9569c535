// Loops over runs of neighbouring values, compiled for several instruction sets. Every value goes through
// core/numeric.hpp, so they are exact by definition.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::quant {

// A bf16|f16|f32 run as f32: in `buffer`, or where it is if it is f32 already.
const float* as_f32(const void* values, DType dtype, int64_t count, float* buffer);
// f32 to a bf16|f16|f32 run.
void store(const float* values, int64_t count, DType dtype, void* to);

// The largest magnitude that is not NaN, infinities counted as the largest finite f32.
struct Magnitude {
  float largest = 0.0f;
  bool has_nan = false;
};
Magnitude magnitude(const float* values, int64_t count);

void divide(const float* values, int64_t count, float divisor, float* out);
void multiply(float* values, int64_t count, float factor);

// fp8_e4m3, or fp4_e2m1 with two values per byte and an even count.
void encode(const float* values, int64_t count, DType dtype, uint8_t* codes);
void decode(const uint8_t* codes, int64_t count, DType dtype, float* values);

}  // namespace mixlane::quant
