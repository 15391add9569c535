// experts.wgmma and its other configurations on the host.
#include "ops/experts/gpu_variants.hpp"

#if !defined(MIXLANE_HIP)

#include "core/error.hpp"
#include "ops/experts/gpu_call.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/operands.hpp"

namespace mixlane::experts_gpu {
namespace {

// Boxes of 128 bytes of k times 128 rows; with a gate eight times eight gate rows and the eight up rows of the same outputs.
gpu::TensorMap weights_map(const ConstTensorView& weights, bool gated) {
  // Two e2m1 values are a byte, and 64 bytes of k a row's share of a stage.
  const uint64_t packed = weights.dtype == DType::fp4_e2m1 ? 2 : 1;
  const auto element = static_cast<uint64_t>(size_bytes(weights.dtype, 2) / 2 + (packed - 1));
  const auto experts = static_cast<uint64_t>(weights.shape[0]), rows = static_cast<uint64_t>(weights.shape[1]);
  const auto depth = static_cast<uint64_t>(weights.shape[2]) / packed;
  const uint64_t row_bytes = depth * element;
  const uint64_t parts = gated ? 2 : 1;
  gpu::TensorMapShape shape{weights.data,
                            static_cast<int>(element),
                            5,
                            {depth, 8, parts, rows / parts / 8, experts},
                            {row_bytes, rows / parts * row_bytes, 8 * row_bytes, rows * row_bytes},
                            {static_cast<uint32_t>(128 / packed / element), 8, static_cast<uint32_t>(parts),
                             static_cast<uint32_t>(16 / parts), 1}};
  return gpu::encode_tensor_map(shape);
}

// Boxes of 128 bytes times 16 rows.
gpu::TensorMap rows_map(const TensorView& rows) {
  const auto element = static_cast<uint64_t>(bits(rows.dtype) / 8);
  const auto cols = static_cast<uint64_t>(rows.shape[1]);
  return gpu::encode_tensor_map({rows.data,
                                 static_cast<int>(element),
                                 2,
                                 {cols, static_cast<uint64_t>(rows.shape[0])},
                                 {cols * element},
                                 {static_cast<uint32_t>(128 / element), 16}});
}

void set_weight_scales(WgmmaArgs& k, QuantFormat format, const ConstTensorView& scales) {
  if (has_mx_weights(format))
    k.mx_scales = scales.as<uint8_t>();
  else
    k.weight_scales = scales.as<float>();
}

// gate_up writes `activated` and its scales; `raw`, f32, instead where quantising needs whole rows.
WgmmaArgs gate_up_args(const ExpertsArgs& args, const InputRows& input, const TensorView& to, const TensorView& scales) {
  const ExpertWeights& w = args.weights;
  WgmmaArgs k;
  k.weights = weights_map(w.gate_up, args.activation.gated());
  k.slots = make_slots(args);
  k.slots.by_topk = gpu::Divider::by(static_cast<uint32_t>(input.num_topk));
  k.num_topk = static_cast<uint32_t>(input.num_topk);
  k.rows = rows_of(input.rows);
  k.token_scales = floats_of(input.scales);
  k.input_weights = floats_of(input.weights);
  set_weight_scales(k, w.format, w.gate_up_scales);
  k.bias = w.gate_up_bias.as<float>();
  k.output = rows_of(to);
  if (has_groups(w.format)) k.output_scales = {scales.as<float>(), scales.strides[0]};
  k.activation = args.activation;
  k.depth = static_cast<uint32_t>(w.hidden);
  k.num_outputs = static_cast<uint32_t>(w.intermediate);
  k.weight_rows = static_cast<uint32_t>(gate_up_rows(w, args.activation));
  return k;
}

WgmmaArgs down_args(const ExpertsArgs& args, const TensorView& activated, const TensorView& scales, const TensorView& to) {
  const ExpertWeights& w = args.weights;
  WgmmaArgs k;
  k.weights = weights_map(w.down, false);
  k.tokens = rows_map(activated);
  k.slots = make_slots(args);
  k.token_scales = floats_of(scales);
  set_weight_scales(k, w.format, w.down_scales);
  k.bias = w.down_bias.as<float>();
  k.output = rows_of(to);
  k.depth = static_cast<uint32_t>(w.intermediate);
  k.num_outputs = static_cast<uint32_t>(w.hidden);
  k.weight_rows = k.num_outputs;
  return k;
}

void launch_wgmma(const WgmmaLaunch& launch, QuantFormat format, Device device, Stream stream) {
  const int multiprocessors = gpu::num_multiprocessors(device.index);
  if (format == QuantFormat::none) return launch_wgmma_bf16(launch, multiprocessors, stream);
  if (format == QuantFormat::mxfp4) return launch_wgmma_e2m1(launch, multiprocessors, stream);
  if (format == QuantFormat::mxfp4_fp8) return launch_wgmma_e2m1_e4m3(launch, multiprocessors, stream);
  launch_wgmma_e4m3(launch, format == QuantFormat::fp8_channel, multiprocessors, stream);
}

// Behind what other stages have there; they share it because a Context's work is ordered.
WgmmaState* wgmma_state(Arena& arena) {
  constexpr int64_t kBegin = 1024;
  static_assert(kBegin + sizeof(WgmmaState) <= Arena::kZerosBytes);
  return reinterpret_cast<WgmmaState*>(static_cast<std::byte*>(arena.zeros()) + kBegin);
}

WgmmaArgs nothing_of(const WgmmaArgs& args) {
  WgmmaArgs nothing;
  nothing.slots = args.slots;
  return nothing;
}

std::string refuse_misaligned(std::string_view name, const ConstTensorView& view) {
  const int64_t row_bytes = size_bytes(view.dtype, view.shape[0] > 1 ? view.strides[view.ndim - 2] : 0);
  if (reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && row_bytes % 16 == 0) return "";
  return fmt::format("{} is {} at {}; its rows must be aligned to 16 bytes", name, to_string(view), view.data);
}

}  // namespace

void run_wgmma(Context& context, const ExpertsArgs& args, WgmmaConfig config, Stream stream) {
  if (is_empty(args)) return sum_pairs(context, args, {}, stream);
  const QuantFormat format = args.weights.format;
  const Device device = context.device();
  const bool raw = format == QuantFormat::fp8_channel;
  const int64_t num_floats = num_partial_floats(gpu::num_multiprocessors(device.index));
  const Matrices matrices(context, args, raw, 2 * Arena::rounded(num_floats * 4), stream);
  WgmmaLaunch both;
  both.gated = args.activation.gated();
  both.narrow = config.tiles == WgmmaConfig::Tiles::narrow;
  both.batch_invariant = args.batch_invariant;
  both.state = wgmma_state(context.arena());
  both.status = args.status;
  both.first = gate_up_args(args, matrices.input(), matrices.gate_up_output(), matrices.scales());
  both.first.partial_sums = context.arena().take_as<float>(num_floats);
  both.down = down_args(args, matrices.activated(), matrices.scales(), matrices.output());
  both.down.partial_sums = context.arena().take_as<float>(num_floats);
  both.runs_first = both.runs_down = true;
  if (num_wgmma_launches(format, config) == 1) {
    launch_wgmma(both, format, device, stream);
  } else {
    WgmmaLaunch first = both;
    first.runs_down = false;
    first.down = nothing_of(both.down);
    launch_wgmma(first, format, device, stream);
    if (raw) matrices.quantise_sums(stream);
    WgmmaLaunch down = both;
    down.runs_first = false;
    down.first = nothing_of(both.first);
    launch_wgmma(down, format, device, stream);
  }
  sum_pairs(context, args, matrices.output(), stream);
}

std::string refuse_wgmma(const Context& context, const ExpertsArgs& args, WgmmaConfig config) {
  const ExpertWeights& w = args.weights;
  if (gpu::compute_capability(context.device().index) != 90) return "wgmma needs sm_90";
  if (std::string reason = refuse_wgmma_config(w.format, config); !reason.empty()) return reason;
  if (has_mx_weights(w.format) && (w.hidden % 32 != 0 || w.intermediate % 32 != 0))
    return fmt::format("hidden is {}, intermediate {}; rows of mxfp4 weights must be multiples of 16 bytes", w.hidden,
                       w.intermediate);
  if (w.num_experts > kMaxWgmmaExperts) return fmt::format("{} experts; at most {}", w.num_experts, kMaxWgmmaExperts);
  if (std::string reason = refuse_large(args); !reason.empty()) return reason;
  if (w.num_experts == 0) return "";
  if (const int64_t stride = size_bytes(args.rows.dtype, args.rows.strides[0]); stride >= int64_t{1} << 32)
    return fmt::format("rows lie {} bytes apart; less than 4 GiB", stride);
  for (const auto& [name, view] : {std::pair<std::string_view, ConstTensorView>{"weights.gate_up", w.gate_up},
                                   {"weights.down", w.down},
                                   {"rows", args.rows},
                                   {"output", args.pair_slots.given() ? TensorView() : args.output}})
    if (std::string reason = refuse_misaligned(name, view); !reason.empty()) return reason;
  return "";
}

}  // namespace mixlane::experts_gpu

#endif
