// What a QuantFormat makes of weights and of activations.
#pragma once

#include "mixlane/quant.hpp"

namespace mixlane {

inline bool has_mx_weights(QuantFormat format) {
  return format == QuantFormat::mxfp4 || format == QuantFormat::mxfp4_fp8;
}

// Activations are e4m3 with scales; else they stay bf16.
inline bool quantises_activations(QuantFormat format) {
  return format == QuantFormat::fp8_block || format == QuantFormat::fp8_channel || format == QuantFormat::mxfp4_fp8;
}

// How quantised activations are scaled.
inline ScaleGroup activation_group(QuantFormat format) {
  return format == QuantFormat::fp8_channel ? ScaleGroup::row : ScaleGroup::group_1x128;
}

// How quantised weights are scaled.
inline ScaleGroup weight_group(QuantFormat format) {
  if (has_mx_weights(format)) return ScaleGroup::group_1x32;
  return format == QuantFormat::fp8_channel ? ScaleGroup::row : ScaleGroup::block_128x128;
}

inline DType weight_dtype(QuantFormat format) {
  if (format == QuantFormat::none) return DType::bf16;
  return has_mx_weights(format) ? DType::fp4_e2m1 : DType::fp8_e4m3;
}

}  // namespace mixlane
