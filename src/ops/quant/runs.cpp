#include "ops/quant/runs.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/numeric.hpp"
#include "core/simd.hpp"

namespace mixlane::quant {
namespace {

MIXLANE_CPU_LEVELS void load_bf16(const uint16_t* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(values[i]);
}
MIXLANE_CPU_LEVELS void load_f16(const uint16_t* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(values[i]);
}
MIXLANE_CPU_LEVELS void store_bf16(const float* values, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = f32_to_bf16(values[i]);
}
MIXLANE_CPU_LEVELS void store_f16(const float* values, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = f32_to_f16(values[i]);
}

MIXLANE_CPU_LEVELS void encode_e4m3(const float* values, int64_t count, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = f32_to_e4m3(values[i]);
}
MIXLANE_CPU_LEVELS void encode_e2m1(const float* values, int64_t count, uint8_t* codes) {
  for (int64_t i = 0; i < count / 2; ++i)
    codes[i] = static_cast<uint8_t>(f32_to_e2m1(values[2 * i]) | f32_to_e2m1(values[2 * i + 1]) << 4);
}
MIXLANE_CPU_LEVELS void decode_e4m3(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = e4m3_to_f32(codes[i]);
}
MIXLANE_CPU_LEVELS void decode_e2m1(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count / 2; ++i) {
    values[2 * i] = e2m1_to_f32(codes[i] & 15u);
    values[2 * i + 1] = e2m1_to_f32(codes[i] >> 4);
  }
}

}  // namespace

const float* as_f32(const void* values, DType dtype, int64_t count, float* buffer) {
  if (dtype == DType::f32) return static_cast<const float*>(values);
  (dtype == DType::bf16 ? load_bf16 : load_f16)(static_cast<const uint16_t*>(values), count, buffer);
  return buffer;
}

void store(const float* values, int64_t count, DType dtype, void* to) {
  if (dtype == DType::f32)
    std::memcpy(to, values, static_cast<size_t>(count) * sizeof(float));
  else
    (dtype == DType::bf16 ? store_bf16 : store_f16)(values, count, static_cast<uint16_t*>(to));
}

MIXLANE_CPU_LEVELS Magnitude magnitude(const float* values, int64_t count) {
  // Magnitudes of floats are ordered like their bits; NaNs are above infinity.
  constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t largest = 0, any_nan = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
    const uint32_t nan = 0u - ((kInfinity - bits) >> 31);  // all ones for a NaN; a comparison would not vectorise
    any_nan |= nan;
    largest = std::max(largest, bits & ~nan);
  }
  return {std::bit_cast<float>(std::min(largest, kInfinity - 1)), any_nan != 0};
}

MIXLANE_CPU_LEVELS void divide(const float* values, int64_t count, float divisor, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = values[i] / divisor;
}

MIXLANE_CPU_LEVELS void multiply(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

void encode(const float* values, int64_t count, DType dtype, uint8_t* codes) {
  (dtype == DType::fp8_e4m3 ? encode_e4m3 : encode_e2m1)(values, count, codes);
}

void decode(const uint8_t* codes, int64_t count, DType dtype, float* values) {
  (dtype == DType::fp8_e4m3 ? decode_e4m3 : decode_e2m1)(codes, count, values);
}

}  // namespace mixlane::quant
