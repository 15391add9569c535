// Experts: gate_up grouped GEMM -> activation -> down grouped GEMM over the slots that align laid out.
#pragma once

#include <limits>

#include "mixlane/core.hpp"
#include "mixlane/quant.hpp"

namespace mixlane {

enum class ActivationKind : uint8_t {
  swiglu,      // silu(min(gate, limit)) * clamp(up, -limit, limit)            (limit = inf: plain SwiGLU)
  swiglu_oai,  // g = min(gate, limit), u = clamp(up, -limit, limit): g * sigmoid(alpha * g) * (u + 1)   (gpt-oss)
  geglu_tanh,  // gelu_tanh(gate) * up
  relu2,       // relu(x)^2, no gate: gate_up has I rows, not 2 I
};

struct Activation {
  ActivationKind kind = ActivationKind::swiglu;
  float limit = std::numeric_limits<float>::infinity();  // DeepSeek-V4: 10; gpt-oss: 7
  float alpha = 1.702f;                                  // swiglu_oai only
  bool gated() const { return kind != ActivationKind::relu2; }
};

std::string_view name(ActivationKind kind);
ActivationKind activation_from_name(std::string_view name);

// One rank's experts, or the shared expert as a group of one. Matrices are [out, in], row major, as checkpoints hold
// them: gate_up has the I gate rows first, then the I up rows. Borrowed; must outlive the calls.
struct ExpertWeights {
  QuantFormat format = QuantFormat::none;
  int num_experts = 0;               // of this rank; 0 is fine
  int hidden = 0;                    // H
  int intermediate = 0;              // I
  ConstTensorView gate_up{};         // bf16 | fp8_e4m3 | fp4_e2m1 [experts, 2 I or I, H]
  ConstTensorView gate_up_scales{};  // fp8_block f32 [experts, ceil(rows/128), ceil(H/128)]; fp8_channel f32 [experts,
                                     // rows]; mxfp4, mxfp4_fp8 e8m0 [experts, rows, ceil(H/32)]
  ConstTensorView gate_up_bias{};    // optional f32 [experts, 2 I or I]
  ConstTensorView down{};            // [experts, H, I]
  ConstTensorView down_scales{};
  ConstTensorView down_bias{};  // optional f32 [experts, H]
};

struct ExpertsArgs {
  ExpertWeights weights{};
  Activation activation{};
  ConstTensorView rows{};        // [rows, H] strided: bf16, or fp8_e4m3 with `row_scales` where activations are fp8
  ConstTensorView row_scales{};  // f32 [rows, ceil(H/128)] (fp8_block, mxfp4_fp8) or [rows] (fp8_channel); strided rows
  int num_topk = 1;              // K: pair p gathers row p / K
  // From align, all three; or none of them: one dense expert, slot i is row i (shared experts).
  ConstTensorView sorted_pairs{};    // i32 [slots]: pair per slot
  ConstTensorView expert_counts{};   // i32 [experts]
  ConstTensorView expert_offsets{};  // i32 [experts + 1]
  // Llama-4: multiply the input row by the pair's weight (f32 [rows, K], strided) before gate_up.
  ConstTensorView input_weights{};
  // bf16 [slots, H]: one row per pair at its slot; pad slots are not written. With `pair_slots`: bf16|f32 [rows, H], the sum
  // of each row's pairs; zeros where it has none.
  TensorView output{};
  // Sum the pairs of each row in the same call, as combine does: see "Sums per row" below.
  ConstTensorView pair_slots{};    // i32 [rows, K] from align: slot of each pair, -1 if it has none here
  ConstTensorView topk_weights{};  // optional f32 [rows, K], strided: each pair's weight in the sum; left out: all 1
  ConstTensorView segment_rows{};  // optional i32 [S], as align took it: the output of rows that do not count is not written
  // A pair's row has the same bits however many rows its expert and others have, and whichever slots they are in: sums over
  // k in one order for all row counts. experts.onednn refuses it. What it costs: docs/results/experts-h200.md.
  bool batch_invariant = false;
  // Optional, in device memory, GPUs only: internal with the time waited if blocks of a kernel did not hear of each other
  // for 30 s; rows that hang on it are NaN then.
  Status* status = nullptr;
  std::string_view variant = "auto";
};

// Arithmetic: products accumulate in f32; fp8_block and mxfp4_fp8 scale each 128 of the reduction in f32; gate_up's result
// stays f32 up to the activation, whose result is rounded to bf16 (none, mxfp4) or quantised like the input (the others);
// the down product is rounded once to bf16. bf16 input is quantised here where activations are fp8. Deterministic: the same
// pairs on an expert give the same bits. CPU variants: experts.reference (plain loops, the oracle), experts.onednn. GPU
// variants: experts.wgmma (sm_90; rows of `rows` and `output` and the weights aligned to 16 bytes, mxfp4, mxfp4_fp8: H and I
// multiples of 32), experts.mma (sm_80 on, gfx90a, gfx942; any alignment). On a GPU counts, offsets and pairs are read when
// the work runs: the call may be captured once and replayed with others, and what they hold is not checked. Sums per row:
// each pair's row is rounded to bf16 as without them; then output[r] = the sum over k, ascending and from +0, of
// topk_weights[r, k] * row of pair (r, k), products and sums in f32, rounded once to the output's dtype. What combine makes
// of the same rows, bit by bit. Pairs whose slot is none of the experts' (-1, an invalid bucket's) count as nothing. The
// pairs' rows lie in the workspace: slots * H * 2 bytes.
void run_experts(Context& context, const ExpertsArgs& args, Stream stream = {});

}  // namespace mixlane
