// Arguments of experts.mma: one launch per product.
#pragma once

#include "ops/experts/device_args.hpp"

namespace mixlane::experts_gpu {

struct MmaArgs {
  const std::byte* weights = nullptr;  // [experts, weight_rows, depth]
  DType weight_type = DType::bf16;     // bf16, fp8_e4m3, fp4_e2m1
  DType row_type = DType::bf16;        // bf16, fp8_e4m3
  Slots slots;
  Rows<const std::byte> rows;
  Floats<const float> token_scales{};
  Floats<const float> input_weights{};
  const float* weight_scales = nullptr;
  const uint8_t* mx_scales = nullptr;
  const float* bias = nullptr;
  Rows<std::byte> output{};  // bf16 or f32
  Activation activation{};
  uint32_t num_topk = 1;
  uint32_t depth = 0;
  uint32_t num_outputs = 0;
  uint32_t weight_rows = 0;
  uint32_t weight_bits = 16;
  bool gathers = false;  // rows by pair, not by slot
  bool gated = false;
  bool activates = false;
  bool group_scales = false;    // per token and 128 of k; of weights, if they have f32 scales, per 128 x 128
  bool channel_scales = false;  // per token and per weight row
  bool output_f32 = false;
};

}  // namespace mixlane::experts_gpu
