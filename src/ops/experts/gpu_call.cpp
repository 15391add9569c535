#include "ops/experts/gpu_call.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "ops/experts/launchers.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/operands.hpp"

namespace mixlane::experts_gpu {
namespace {

constexpr int64_t kMaxPairs = int64_t{1} << 31;

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

int64_t activated_bytes(const ExpertsArgs& args, bool raw) {
  const ExpertWeights& w = args.weights;
  const int64_t slots = num_slots(args), values = slots * w.intermediate;
  const bool fp8 = quantises_activations(w.format);
  return Arena::rounded(values * (fp8 ? 1 : 2)) +
         (fp8 ? Arena::rounded(slots * num_groups(w.format, w.intermediate) * 4) : 0) +
         (raw ? Arena::rounded(values * 4) : 0) + (args.pair_slots.given() ? Arena::rounded(slots * w.hidden * 2) : 0);
}

}  // namespace

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

Floats<const float> floats_of(const ConstTensorView& view) { return {view.as<float>(), view.given() ? view.strides[0] : 0}; }

Rows<const std::byte> rows_of(const ConstTensorView& view) {
  return {static_cast<const std::byte*>(view.data), size_bytes(view.dtype, view.strides[0])};
}
Rows<std::byte> rows_of(const TensorView& view) {
  return {static_cast<std::byte*>(view.data), size_bytes(view.dtype, view.strides[0])};
}

bool can_overlap(Device device) { return device.type == DeviceType::cuda && gpu::compute_capability(device.index) >= 90; }

std::string refuse_large(const ExpertsArgs& args) {
  // Sums go by rows and pieces of 256 values.
  if (args.pair_slots.given() && args.rows.shape[0] * ceil_div(args.weights.hidden, 256) >= kMaxPairs)
    return fmt::format("{} rows of {} values to sum; fewer than {} times 256", args.rows.shape[0], args.weights.hidden,
                       kMaxPairs);
  if (args.rows.shape[0] * args.num_topk < kMaxPairs && num_slots(args) < kMaxPairs) return "";
  return fmt::format("{} rows x {}, {} slots; fewer than {} of each", args.rows.shape[0], args.num_topk, num_slots(args),
                     kMaxPairs);
}

bool is_empty(const ExpertsArgs& args) { return args.weights.num_experts == 0 || num_slots(args) == 0; }

void sum_pairs(const Context& context, const ExpertsArgs& args, const ConstTensorView& pair_rows, Stream stream) {
  if (!args.pair_slots.given() || args.rows.shape[0] == 0) return;
  const Device device = context.device();
  const gpu::DeviceGuard guard(device);
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

Matrices::Matrices(Context& context, const ExpertsArgs& args, bool raw, int64_t more_bytes, Stream stream)
    : context_(context),
      args_(args),
      raw_(raw),
      guard_(context.device()),
      scope_(context.arena()),
      input_{args.rows, args.row_scales, args.num_topk, args.input_weights} {
  context.arena().reserve(Arena::rounded(more_bytes) + input_bytes(args) + activated_bytes(args, raw));
  if (args.rows.dtype == DType::bf16) prepare_input(stream);
  const ExpertWeights& w = args.weights;
  const int64_t slots = num_slots(args);
  const bool fp8 = quantises_activations(w.format);
  activated_ = take(fp8 ? DType::fp8_e4m3 : DType::bf16, slots, w.intermediate);
  if (fp8) scales_ = take_scales(slots, w.intermediate);
  if (raw) sums_ = take(DType::f32, slots, w.intermediate);
  output_ = args.pair_slots.given() ? take(DType::bf16, slots, w.hidden) : args.output;
}

TensorView Matrices::take(DType dtype, int64_t rows, int64_t cols) {
  return {context_.arena().take(size_bytes(dtype, rows * cols)), dtype, {rows, cols}, context_.device()};
}

TensorView Matrices::take_scales(int64_t rows, int64_t cols) {
  const QuantFormat format = args_.weights.format;
  const int64_t groups = num_groups(format, cols);
  float* scales = context_.arena().take_as<float>(rows * groups);
  if (format == QuantFormat::fp8_channel) return {scales, DType::f32, {rows}, context_.device()};
  return {scales, DType::f32, {rows, groups}, context_.device()};
}

void Matrices::scale_by_weights(Stream stream) {
  const int64_t pairs = args_.rows.shape[0] * args_.num_topk;
  const TensorView scaled = take(DType::bf16, pairs, args_.weights.hidden);
  ScaleRowsArgs to;
  to.rows = {static_cast<const std::byte*>(args_.rows.data), args_.rows.strides[0] * 2};
  to.weights = {args_.input_weights.as<float>(), args_.input_weights.strides[0]};
  to.output = scaled.data;
  to.hidden = static_cast<uint32_t>(args_.weights.hidden);
  to.by_topk = gpu::Divider::by(static_cast<uint32_t>(args_.num_topk));
  launch_scale_rows(to, static_cast<uint32_t>(pairs), can_overlap(context_.device()), stream);
  input_ = {scaled, {}, 1, {}};
}

void Matrices::prepare_input(Stream stream) {
  const QuantFormat format = args_.weights.format;
  if (args_.input_weights.given()) scale_by_weights(stream);
  if (!quantises_activations(format)) return;
  const TensorView codes = take(DType::fp8_e4m3, input_.rows.shape[0], args_.weights.hidden);
  const TensorView scales = take_scales(input_.rows.shape[0], args_.weights.hidden);
  quantize(context_, {.input = input_.rows, .group = activation_group(format), .output = codes, .scales = scales}, stream);
  input_ = {codes, scales, input_.num_topk, {}};
}

void Matrices::quantise_sums(Stream stream) const {
  const ExpertWeights& w = args_.weights;
  QuantArgs quant{.input = sums_, .group = activation_group(w.format), .output = activated_, .scales = scales_};
  if (args_.expert_offsets.given())
    quant.num_valid_rows =
        ConstTensorView(args_.expert_offsets.as<int32_t>() + w.num_experts, DType::i32, {1}, context_.device());
  quantize(context_, quant, stream);
}

}  // namespace mixlane::experts_gpu
