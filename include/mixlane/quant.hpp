// Quantisation of activations and weights, and its inverse.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane {

// The arithmetic of an experts stage, as named on the command line.
enum class QuantFormat : uint8_t {
  none,         // "none": bf16 weights and activations
  fp8_block,    // "fp8": e4m3; weights one f32 scale per 128x128 block, activations one per 1x128 group
  fp8_channel,  // "fp8_channel": e4m3; weights one f32 scale per output channel (row), activations one per token
  mxfp4,        // "mxfp4": e2m1 weights, one e8m0 scale per 32 values along the reduction; activations stay bf16
  mxfp4_fp8,    // "mxfp4_fp8" (W4A8): weights as mxfp4, activations as fp8_block
};

std::string_view name(QuantFormat format);
// Throws invalid_argument listing the valid names.
QuantFormat quant_format_from_name(std::string_view name);

// Which values share a scale.
enum class ScaleGroup : uint8_t {
  group_1x128,    // fp8: each run of 128 values of a row (the last one may be shorter); scales f32 [rows, ceil(cols/128)]
  row,            // fp8: each row, that is each token or output channel; scales f32 [rows]
  block_128x128,  // fp8: each 128x128 tile (edge tiles smaller); scales f32 [ceil(rows/128), ceil(cols/128)]
  group_1x32,     // mxfp4: each run of 32 values of a row; scales e8m0 [rows, ceil(cols/32)]
};

struct QuantArgs {
  ConstTensorView input{};  // bf16|f16|f32 [rows, cols], rows may be strided; cols even for fp4_e2m1
  ScaleGroup group = ScaleGroup::group_1x128;
  TensorView output{};               // fp8_e4m3 or (group_1x32) fp4_e2m1 [rows, cols], rows may be strided
  TensorView scales{};               // as ScaleGroup says; its innermost stride may be any
  ConstTensorView num_valid_rows{};  // optional i32 [1] in device memory; rows behind it are not touched
  // A promise: right before it route() or align() was enqueued on the stream, and neither writes this call's inputs nor
  // touches its outputs. The two may then run at the same time; later calls still find both done.
  bool independent_of_previous = false;
  std::string_view variant = "auto";
};

struct DequantArgs {
  ConstTensorView input{};  // fp8_e4m3 or fp4_e2m1 [rows, cols]
  ScaleGroup group = ScaleGroup::group_1x128;
  ConstTensorView scales{};
  TensorView output{};  // bf16|f16|f32 [rows, cols]
  std::string_view variant = "auto";
};

// fp8: scale = max(amax, 1e-10) / 448 in f32; value = e4m3(x / scale), to nearest even, saturated to +-448.
// mxfp4: OCP MX: scale exponent = floor(log2(amax)) - 2, clamped to the e8m0 range; value = e2m1(x / scale), to
// nearest even, saturated to +-6. What NaN and infinities give is in docs/stages/quant.md and tested bit by bit.
void quantize(Context& context, const QuantArgs& args, Stream stream = {});
// value * scale in f32, rounded once to the output's dtype.
void dequantize(Context& context, const DequantArgs& args, Stream stream = {});

}  // namespace mixlane
