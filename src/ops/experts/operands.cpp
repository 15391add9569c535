#include "ops/experts/operands.hpp"

#include <algorithm>
#include <cstring>

#include "core/numeric.hpp"
#include "core/simd.hpp"
#include "ops/experts/cpu/decode.hpp"
#include "ops/experts/op.hpp"
#include "ops/quant/runs.hpp"

namespace mixlane {
namespace {

MatrixView matrix_of(QuantFormat format, const ConstTensorView& values, const ConstTensorView& scales,
                     const ConstTensorView& bias, int64_t expert) {
  MatrixView matrix;
  matrix.format = format;
  matrix.rows = values.shape[1];
  matrix.cols = values.shape[2];
  matrix.row_bytes = size_bytes(values.dtype, matrix.cols);
  matrix.values = values.as<uint8_t>() + expert * matrix.rows * matrix.row_bytes;
  if (scales.given()) {
    const int64_t count = scales.num_values() / scales.shape[0];
    matrix.scales = scales.as<uint8_t>() + size_bytes(scales.dtype, expert * count);
  }
  if (bias.given()) matrix.bias = bias.as<float>() + expert * matrix.rows;
  return matrix;
}

MIXLANE_CPU_LEVELS void widen_bf16(const uint16_t* in, float factor, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(in[i]) * factor;
}

MIXLANE_CPU_LEVELS void narrow_bf16(const float* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = f32_to_bf16(in[i]);
}

// One scale for all `count` values, as quantize() defines it. The quantised values are returned as
// bf16, which holds them all.
float quantise_e4m3(const float* in, uint16_t* out, int64_t count) {
  constexpr int64_t kRun = 1024;
  const float scale = std::max(quant::magnitude(in, count).largest, 1e-10f) / kE4m3Max;
  float scaled[kRun];
  uint8_t codes[kRun];
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t run = std::min(kRun, count - begin);
    quant::divide(in + begin, run, scale, scaled);
    quant::encode(scaled, run, DType::fp8_e4m3, codes);
    decode_e4m3(codes, out + begin, run);
  }
  return scale;
}

void load_fp8_row(const ExpertsArgs& args, int64_t row, float factor, uint16_t* values, float* scales) {
  const int64_t hidden = args.weights.hidden;
  decode_e4m3(args.rows.as<uint8_t>() + row * args.rows.strides[0], values, hidden);
  const int64_t groups = num_groups(args.weights.format, hidden);
  const float* from = args.row_scales.as<float>() + row * args.row_scales.strides[0];
  for (int64_t g = 0; g < groups; ++g) scales[g] = from[g] * factor;
}

}  // namespace

MatrixView gate_up_of(const ExpertWeights& weights, int64_t expert) {
  return matrix_of(weights.format, weights.gate_up, weights.gate_up_scales, weights.gate_up_bias, expert);
}

MatrixView down_of(const ExpertWeights& weights, int64_t expert) {
  return matrix_of(weights.format, weights.down, weights.down_scales, weights.down_bias, expert);
}

void decode_row(const MatrixView& matrix, int64_t n, uint16_t* values) {
  switch (matrix.format) {
    case QuantFormat::none: std::memcpy(values, matrix.row(n), static_cast<size_t>(matrix.row_bytes)); break;
    case QuantFormat::fp8_block:
    case QuantFormat::fp8_channel: decode_e4m3(matrix.row(n), values, matrix.cols); break;
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8: decode_mxfp4(matrix.row(n), matrix.mx_scales(n), values, matrix.cols); break;
  }
}

float weight_scale(const MatrixView& matrix, int64_t n, int64_t group) {
  const auto* scales = static_cast<const float*>(matrix.scales);
  switch (matrix.format) {
    case QuantFormat::fp8_block: return scales[n / kScaleBlock * ceil_div(matrix.cols, kScaleBlock) + group];
    case QuantFormat::fp8_channel: return scales[n];
    default: return 1.0f;
  }
}

void load_input_row(const ExpertsArgs& args, int64_t pair, uint16_t* values, float* scales, float* scratch) {
  const int64_t row = pair / args.num_topk;
  const int64_t hidden = args.weights.hidden;
  float factor = 1.0f;
  if (args.input_weights.given())
    factor = args.input_weights.as<float>()[row * args.input_weights.strides[0] + pair % args.num_topk];
  if (args.rows.dtype == DType::fp8_e4m3) return load_fp8_row(args, row, factor, values, scales);

  const uint16_t* from = args.rows.as<uint16_t>() + row * args.rows.strides[0];
  if (args.input_weights.given()) {
    widen_bf16(from, factor, scratch, hidden);
    narrow_bf16(scratch, values, hidden);
    from = values;
  }
  if (!quantises_activations(args.weights.format)) {
    if (from != values) std::memcpy(values, from, static_cast<size_t>(hidden) * 2);
    scales[0] = 1.0f;
    return;
  }
  widen_bf16(from, 1.0f, scratch, hidden);
  store_operand(args.weights.format, scratch, hidden, values, scales);
}

void store_operand(QuantFormat format, const float* row, int64_t count, uint16_t* values, float* scales) {
  if (!quantises_activations(format)) {
    narrow_bf16(row, values, count);
    scales[0] = 1.0f;
    return;
  }
  const int64_t group = group_size(format, count);
  for (int64_t begin = 0; begin < count; begin += group)
    scales[begin / group] = quantise_e4m3(row + begin, values + begin, std::min(group, count - begin));
}

}  // namespace mixlane
