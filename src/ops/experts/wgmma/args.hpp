// Arguments of experts.wgmma: one launch, of both products or of one.
#pragma once

#include "gpu/tensor_map.hpp"
#include "ops/experts/device_args.hpp"

namespace mixlane::experts_gpu {

// up: of experts without a gate.
enum class Product { gate_up, up, down };

// bf16; e4m3 with scales of 1x128 and 128x128; e4m3 with a scale per token and per weight row; e2m1 weights with a scale
// per 32 values and bf16 tokens; the same with e4m3 tokens, whose scales are of 1x128.
enum class Operands { bf16, e4m3_block, e4m3_channel, e2m1, e2m1_e4m3 };

// The products that a kernel is compiled for. One for a single product pays no registers for what the other launch does.
enum class Runs { both, first, down };

inline constexpr int64_t kMaxWgmmaExperts = 1024;

// What the blocks of a launch tell each other; zero between launches.
struct WgmmaState {
  static constexpr int64_t kMaxBlocks = 512;
  uint32_t shares[2][kMaxBlocks * 2];   // [product, block and warpgroup]: its sums of a shared tile are there
  uint32_t finished[kMaxWgmmaExperts];  // warps that have stored their part of a tile of an expert's activated rows
  uint32_t num_left;                    // warps that wait for activated rows no more
};

// Of one product.
struct WgmmaArgs {
  gpu::TensorMap weights;  // [k, 8 rows, gate and up or 1, rows / 8, experts]: see copy_weights
  gpu::TensorMap tokens;   // down: the activated rows [k, slots]
  Slots slots;
  Rows<const std::byte> rows;           // gate_up: what slots gather
  Floats<const float> token_scales{};   // e4m3: of `rows`, or of the activated rows; per group of 128 or per token
  Floats<const float> input_weights{};  // gate_up of e4m3 rows: multiply the scales; may be null
  const float* weight_scales = nullptr;
  const uint8_t* mx_scales = nullptr;  // of e2m1 weights
  const float* bias = nullptr;
  Rows<std::byte> output{};       // gate_up: activated rows per slot, bf16, e4m3 or (e4m3_channel) f32; down: bf16
  Floats<float> output_scales{};  // gate_up of operands with token groups
  float* partial_sums = nullptr;  // num_partial_floats()
  Activation activation{};
  uint32_t num_topk = 1;
  uint32_t depth = 0;        // values of the reduction: H, I
  uint32_t num_outputs = 0;  // I, H
  uint32_t weight_rows = 0;  // 2 I or I, H
};

// A launch; `down` takes the rows that `first` writes. What does not run has nothing but `slots`.
struct WgmmaLaunch {
  WgmmaArgs first, down;
  bool runs_first = false, runs_down = false;
  bool gated = false;   // the first product is gate_up, else up
  bool narrow = false;  // no wide tiles
  bool batch_invariant = false;
  WgmmaState* state = nullptr;
  Status* status = nullptr;  // may be null
};

// Sums of a tile that blocks share: of each block 8 ranges of 256 rows x 16 tokens.
inline int64_t num_partial_floats(int num_multiprocessors) { return int64_t{num_multiprocessors} * 8 * 256 * 16; }

}  // namespace mixlane::experts_gpu
