// The experts variants that run on GPUs: arguments resolved for the kernels, and the registry lines.
#include <algorithm>

#include "core/arena.hpp"
#include "core/math.hpp"
#include "gpu/runtime.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/operands.hpp"

namespace mixlane {
namespace experts_gpu {
namespace {

constexpr int64_t kMaxPairs = int64_t{1} << 31;

Slots make_slots(const ExpertsArgs& args) {
  Slots slots;
  slots.sorted_pairs = args.sorted_pairs.as<int32_t>();
  slots.counts = args.expert_counts.as<int32_t>();
  slots.offsets = args.expert_offsets.as<int32_t>();
  slots.num_experts = static_cast<uint32_t>(args.weights.num_experts);
  slots.num_rows = static_cast<uint32_t>(args.rows.shape[0]);
  slots.by_topk = gpu::Divider::by(static_cast<uint32_t>(args.num_topk));
  return slots;
}

bool can_overlap(Device device) { return device.type == DeviceType::cuda && gpu::compute_capability(device.index) >= 90; }

// The input rows in the form that gate_up gathers: as they came, or times their pairs' weights, or quantised.
struct InputRows {
  ConstTensorView rows, scales;
  int num_topk = 1;
  ConstTensorView weights;  // what is left to be multiplied with
};

int64_t input_bytes(const ExpertsArgs& args) {
  if (args.rows.dtype != DType::bf16) return 0;
  const int64_t hidden = args.weights.hidden;
  int64_t rows = args.rows.shape[0], bytes = 0;
  if (args.input_weights.given()) {
    rows *= args.num_topk;
    bytes += Arena::rounded(rows * hidden * 2);
  }
  if (quantises_activations(args.weights.format))
    bytes += Arena::rounded(rows * hidden) + Arena::rounded(rows * num_groups(args.weights.format, hidden) * 4);
  return bytes;
}

// A matrix of the arena and, for fp8, its scales.
TensorView take(Arena& arena, DType dtype, int64_t rows, int64_t cols, Device device) {
  return {arena.take(size_bytes(dtype, rows * cols)), dtype, {rows, cols}, device};
}

TensorView take_scales(Arena& arena, QuantFormat format, int64_t rows, int64_t cols, Device device) {
  const int64_t groups = num_groups(format, cols);
  float* scales = arena.take_as<float>(rows * groups);
  if (format == QuantFormat::fp8_channel) return {scales, DType::f32, {rows}, device};
  return {scales, DType::f32, {rows, groups}, device};
}

InputRows prepare_input(Context& context, const ExpertsArgs& args, Stream stream) {
  InputRows input{args.rows, args.row_scales, args.num_topk, args.input_weights};
  if (args.rows.dtype != DType::bf16) return input;
  const Device device = context.device();
  Arena& arena = context.arena();
  if (args.input_weights.given()) {
    const int64_t pairs = args.rows.shape[0] * args.num_topk;
    const TensorView scaled = take(arena, DType::bf16, pairs, args.weights.hidden, device);
    ScaleRowsArgs to;
    to.rows = {static_cast<const std::byte*>(args.rows.data), args.rows.strides[0] * 2};
    to.weights = {args.input_weights.as<float>(), args.input_weights.strides[0]};
    to.output = scaled.data;
    to.hidden = static_cast<uint32_t>(args.weights.hidden);
    to.by_topk = gpu::Divider::by(static_cast<uint32_t>(args.num_topk));
    launch_scale_rows(to, static_cast<uint32_t>(pairs), can_overlap(device), stream);
    input = {scaled, {}, 1, {}};
  }
  if (!quantises_activations(args.weights.format)) return input;
  const QuantFormat format = args.weights.format;
  const TensorView codes = take(arena, DType::fp8_e4m3, input.rows.shape[0], args.weights.hidden, device);
  const TensorView scales = take_scales(arena, format, input.rows.shape[0], args.weights.hidden, device);
  quantize(context, {.input = input.rows, .group = activation_group(format), .output = codes, .scales = scales}, stream);
  return {codes, scales, input.num_topk, {}};
}

Floats<const float> floats_of(const ConstTensorView& view) { return {view.as<float>(), view.given() ? view.strides[0] : 0}; }

Rows<const std::byte> rows_of(const ConstTensorView& view) {
  return {static_cast<const std::byte*>(view.data), size_bytes(view.dtype, view.strides[0])};
}
Rows<std::byte> rows_of(const TensorView& view) {
  return {static_cast<std::byte*>(view.data), size_bytes(view.dtype, view.strides[0])};
}

// Of calls with pair_slots.
void sum_rows(const Context& context, const ExpertsArgs& args, const ConstTensorView& pair_rows, Stream stream) {
  const Device device = context.device();
  const int64_t num_segments = args.segment_rows.given() ? args.segment_rows.shape[0] : 1;
  SumPairsArgs to;
  if (pair_rows.given()) to.pair_rows = rows_of(pair_rows);
  to.pair_slots = args.pair_slots.as<int32_t>();
  to.weights = floats_of(args.topk_weights);
  to.offsets = args.expert_offsets.as<int32_t>();
  to.segment_rows = args.segment_rows.as<int32_t>();
  to.output = rows_of(args.output);
  to.output_f32 = args.output.dtype == DType::f32;
  to.packets = (reinterpret_cast<uintptr_t>(to.output.data) | static_cast<uintptr_t>(to.output.stride)) % 16 == 0;
  to.num_experts = static_cast<uint32_t>(args.weights.num_experts);
  to.num_segments = static_cast<uint32_t>(num_segments);
  to.rows_per_segment = static_cast<uint32_t>(args.rows.shape[0] / num_segments);
  to.num_topk = static_cast<uint32_t>(args.num_topk);
  to.hidden = static_cast<uint32_t>(args.weights.hidden);
  launch_sum_pairs(to, gpu::num_multiprocessors(device.index), can_overlap(device), stream);
}

// Input rows, gate_up, down, and the sums of pairs if they are asked for. `raw`: gate_up writes f32, and a pass of its own
// quantises it. `more_bytes`: what they take from the arena themselves.
template <class GateUp, class Down>
void run_products(Context& context, const ExpertsArgs& args, bool raw, int64_t more_bytes, GateUp&& gate_up, Down&& down,
                  Stream stream) {
  const ExpertWeights& w = args.weights;
  const int64_t slots = num_slots(args);
  const Device device = context.device();
  const gpu::DeviceGuard guard(device);
  const bool per_row = args.pair_slots.given() && args.rows.shape[0] > 0;
  if (w.num_experts == 0 || slots == 0) {
    if (per_row) sum_rows(context, args, {}, stream);
    return;
  }
  const bool fp8 = quantises_activations(w.format);
  Arena& arena = context.arena();
  const Arena::Scope scope(arena);
  arena.reserve(Arena::rounded(more_bytes) + input_bytes(args) + Arena::rounded(slots * w.intermediate * (fp8 ? 1 : 2)) +
                (fp8 ? Arena::rounded(slots * num_groups(w.format, w.intermediate) * 4) : 0) +
                (raw ? Arena::rounded(slots * w.intermediate * 4) : 0) +
                (per_row ? Arena::rounded(slots * w.hidden * 2) : 0));
  const TensorView pair_rows = per_row ? take(arena, DType::bf16, slots, w.hidden, device) : args.output;
  const InputRows input = prepare_input(context, args, stream);
  const TensorView activated = take(arena, fp8 ? DType::fp8_e4m3 : DType::bf16, slots, w.intermediate, device);
  TensorView scales;
  if (fp8) scales = take_scales(arena, w.format, slots, w.intermediate, device);
  if (raw) {
    const TensorView sums = take(arena, DType::f32, slots, w.intermediate, device);
    gate_up(input, sums, scales);
    QuantArgs quant{.input = sums, .group = activation_group(w.format), .output = activated, .scales = scales};
    if (args.expert_offsets.given())
      quant.num_valid_rows = ConstTensorView(args.expert_offsets.as<int32_t>() + w.num_experts, DType::i32, {1}, device);
    quantize(context, quant, stream);
  } else {
    gate_up(input, activated, scales);
  }
  down(activated, scales, pair_rows);
  if (per_row) sum_rows(context, args, pair_rows, stream);
}

std::string refuse_large(const ExpertsArgs& args) {
  // Sums go by rows and pieces of 256 values.
  if (args.pair_slots.given() && args.rows.shape[0] * ceil_div(args.weights.hidden, 256) >= kMaxPairs)
    return fmt::format("{} rows of {} values to sum; fewer than {} times 256", args.rows.shape[0], args.weights.hidden,
                       kMaxPairs);
  if (args.rows.shape[0] * args.num_topk < kMaxPairs && num_slots(args) < kMaxPairs) return "";
  return fmt::format("{} rows x {}, {} slots; fewer than {} of each", args.rows.shape[0], args.num_topk, num_slots(args),
                     kMaxPairs);
}

// ---------------------------------------------------------------------------------------------------------------------
// experts.mma

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

void run_mma(Context& context, const ExpertsArgs& args, Stream stream) {
  const ExpertWeights& w = args.weights;
  const int multiprocessors = gpu::num_multiprocessors(context.device().index);
  const bool overlap = can_overlap(context.device());
  run_products(
      context, args, quantises_activations(w.format), 0,
      [&](const InputRows& input, const TensorView& to, const TensorView&) {
        MmaArgs k = mma_args(args, input.rows, input.scales, w.gate_up, w.gate_up_scales, w.gate_up_bias, to);
        k.slots.by_topk = gpu::Divider::by(static_cast<uint32_t>(input.num_topk));
        k.num_topk = static_cast<uint32_t>(input.num_topk);
        k.input_weights = floats_of(input.weights);
        k.gathers = true;
        k.gated = args.activation.gated();
        k.activates = true;
        k.activation = args.activation;
        k.num_outputs = static_cast<uint32_t>(w.intermediate);
        launch_mma(k, multiprocessors, overlap, stream);
      },
      [&](const TensorView& activated, const TensorView& scales, const TensorView& to) {
        MmaArgs k = mma_args(args, activated, scales, w.down, w.down_scales, w.down_bias, to);
        k.num_outputs = k.weight_rows;
        launch_mma(k, multiprocessors, overlap, stream);
      },
      stream);
}

std::string refuse_mma(const Context& context, const ExpertsArgs& args) {
  // A number on AMD GPUs is that of the gfx name; these have matrix cores for bf16 from gfx90a on.
  const int capability = gpu::compute_capability(context.device().index);
  if (capability < 80) return fmt::format("bf16 products need sm_80 or gfx90a; this device is {}", capability);
  return refuse_large(args);
}

#if !defined(MIXLANE_HIP)

// ---------------------------------------------------------------------------------------------------------------------
// experts.wgmma

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

// One launch, or one for each product where the rows between them must be quantised whole.
void run_wgmma_tiles(Context& context, const ExpertsArgs& args, bool narrow, Stream stream) {
  const QuantFormat format = args.weights.format;
  const Device device = context.device();
  const bool raw = format == QuantFormat::fp8_channel;
  const int64_t num_floats = num_partial_floats(gpu::num_multiprocessors(device.index));
  WgmmaLaunch both;
  both.gated = args.activation.gated();
  both.narrow = narrow;
  both.batch_invariant = args.batch_invariant;
  both.state = wgmma_state(context.arena());
  both.status = args.status;
  both.runs_down = true;
  run_products(
      context, args, raw, 2 * Arena::rounded(num_floats * 4),
      [&](const InputRows& input, const TensorView& to, const TensorView& scales) {
        both.first = gate_up_args(args, input, to, scales);
        both.first.partial_sums = context.arena().take_as<float>(num_floats);
        both.runs_first = !raw;
        if (!raw) return;
        WgmmaLaunch first = both;
        first.runs_first = true;
        first.runs_down = false;
        launch_wgmma(first, format, device, stream);
      },
      [&](const TensorView& activated, const TensorView& scales, const TensorView& to) {
        both.down = down_args(args, activated, scales, to);
        if (raw) {
          both.first = WgmmaArgs{};
          both.first.slots = both.down.slots;
        }
        both.down.partial_sums = context.arena().take_as<float>(num_floats);
        launch_wgmma(both, format, device, stream);
      },
      stream);
}

void run_wgmma(Context& context, const ExpertsArgs& args, Stream stream) { run_wgmma_tiles(context, args, false, stream); }
void run_wgmma_narrow(Context& context, const ExpertsArgs& args, Stream stream) {
  run_wgmma_tiles(context, args, true, stream);
}

std::string refuse_misaligned(std::string_view name, const ConstTensorView& view) {
  const int64_t row_bytes = size_bytes(view.dtype, view.shape[0] > 1 ? view.strides[view.ndim - 2] : 0);
  if (reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && row_bytes % 16 == 0) return "";
  return fmt::format("{} is {} at {}; its rows must be aligned to 16 bytes", name, to_string(view), view.data);
}

std::string refuse_wgmma(const Context& context, const ExpertsArgs& args) {
  const ExpertWeights& w = args.weights;
  if (gpu::compute_capability(context.device().index) != 90) return "wgmma needs sm_90";
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

std::string refuse_wgmma_narrow(const Context& context, const ExpertsArgs& args) {
  if (has_mx_weights(args.weights.format)) return "experts.wgmma has no wide tiles of e2m1 weights: it is the same";
  return refuse_wgmma(context, args);
}

#endif

}  // namespace
}  // namespace experts_gpu

std::span<const Variant<ExpertsArgs>> experts_gpu_variants() {
  using namespace experts_gpu;
  static constexpr Variant<ExpertsArgs> kVariants[] = {
#if !defined(MIXLANE_HIP)
    {{"experts.wgmma", "Hopper's warpgroup products, both in one persistent launch; every format", gpu::kDeviceType},
     refuse_wgmma,
     run_wgmma,
     estimate_experts_wgmma},
    {{"experts.wgmma_narrow", "the same with tiles of at most 96 rows (fp8: 64), the weights on the left", gpu::kDeviceType},
     refuse_wgmma_narrow,
     run_wgmma_narrow,
     estimate_experts_wgmma_narrow},
#endif
    {{"experts.mma", "decodes every format to bf16 on the way to the tensor or matrix cores; any GPU", gpu::kDeviceType},
     refuse_mma,
     run_mma,
     estimate_experts_mma},
  };
  return kVariants;
}

}  // namespace mixlane
