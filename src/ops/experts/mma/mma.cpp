// experts.mma on the host.
#include "core/error.hpp"
#include "ops/experts/gpu_call.hpp"
#include "ops/experts/gpu_variants.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/operands.hpp"

namespace mixlane::experts_gpu {
namespace {

// What both products have in common.
MmaArgs mma_args(const ExpertsArgs& args, const ConstTensorView& rows, const ConstTensorView& row_scales,
                 const ConstTensorView& weights, const ConstTensorView& scales, const ConstTensorView& bias,
                 const TensorView& to) {
  MmaArgs k;
  k.weights = static_cast<const std::byte*>(weights.data);
  k.weight_type = weights.dtype;
  k.weight_bits = static_cast<uint32_t>(bits(weights.dtype));
  k.weight_rows = static_cast<uint32_t>(weights.shape[1]);
  k.depth = static_cast<uint32_t>(weights.shape[2]);
  k.row_type = rows.dtype;
  k.slots = make_slots(args);
  k.rows = rows_of(rows);
  k.token_scales = floats_of(row_scales);
  k.group_scales = has_groups(args.weights.format);
  k.channel_scales = args.weights.format == QuantFormat::fp8_channel;
  if (has_mx_weights(args.weights.format))
    k.mx_scales = scales.as<uint8_t>();
  else
    k.weight_scales = scales.as<float>();
  k.bias = bias.as<float>();
  k.output = rows_of(to);
  k.output_f32 = to.dtype == DType::f32;
  return k;
}

}  // namespace

void run_mma(Context& context, const ExpertsArgs& args, Stream stream) {
  if (is_empty(args)) return sum_pairs(context, args, {}, stream);
  const ExpertWeights& w = args.weights;
  const int multiprocessors = gpu::num_multiprocessors(context.device().index);
  const bool overlap = can_overlap(context.device());
  const bool raw = quantises_activations(w.format);
  const Matrices matrices(context, args, raw, 0, stream);

  const InputRows& input = matrices.input();
  MmaArgs gate_up =
      mma_args(args, input.rows, input.scales, w.gate_up, w.gate_up_scales, w.gate_up_bias, matrices.gate_up_output());
  gate_up.slots.by_topk = gpu::Divider::by(static_cast<uint32_t>(input.num_topk));
  gate_up.num_topk = static_cast<uint32_t>(input.num_topk);
  gate_up.input_weights = floats_of(input.weights);
  gate_up.gathers = true;
  gate_up.gated = args.activation.gated();
  gate_up.activates = true;
  gate_up.activation = args.activation;
  gate_up.num_outputs = static_cast<uint32_t>(w.intermediate);
  launch_mma(gate_up, multiprocessors, overlap, stream);
  if (raw) matrices.quantise_sums(stream);

  MmaArgs down =
      mma_args(args, matrices.activated(), matrices.scales(), w.down, w.down_scales, w.down_bias, matrices.output());
  down.num_outputs = down.weight_rows;
  launch_mma(down, multiprocessors, overlap, stream);
  sum_pairs(context, args, matrices.output(), stream);
}

std::string refuse_mma(const Context& context, const ExpertsArgs& args) {
  // A number on AMD GPUs is that of the gfx name; these have matrix cores for bf16 from gfx90a on.
  const int capability = gpu::compute_capability(context.device().index);
  if (capability < 80) return fmt::format("bf16 products need sm_80 or gfx90a; this device is {}", capability);
  return refuse_large(args);
}

}  // namespace mixlane::experts_gpu
