#include "ops/experts/op.hpp"

#include <algorithm>
#include <array>

#include "core/check.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/operands.hpp"
#include "ops/experts/sum_pairs.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kOnednn = "experts.onednn";

std::string refuse_onednn(const Context& context, const ExpertsArgs& args) {
  if (args.batch_invariant) return "batch_invariant: oneDNN's order of sums depends on the number of rows";
  return onednn_missing(context);
}

constexpr std::array<Variant<ExpertsArgs>, 2> kCpuVariants{{
    {{kOnednn, "matrix products by oneDNN, own weight streaming for few rows; needs oneDNN and AVX-512 or better"},
     refuse_onednn,
     launch_experts_onednn},
    {{"experts.reference", "plain loops in f32, the oracle; needs no library"}, nullptr, launch_experts_reference},
}};

// The CPU's vectors; every model's sizes are multiples of it.
constexpr int kSizeUnit = 16;

void require_size(std::string_view field, int size) {
  if (size <= 0 || size % kSizeUnit != 0)
    fail(ErrorCode::invalid_argument, "{} is {}; it must be a positive multiple of {}", field, size, kSizeUnit);
}

void require_scales(std::string_view name, const ConstTensorView& scales, const ExpertWeights& weights, int64_t rows,
                    int64_t cols, Device device) {
  const int64_t experts = weights.num_experts;
  switch (weights.format) {
    case QuantFormat::none:
      if (scales.given())
        fail(ErrorCode::invalid_argument, "{} is {}; bf16 weights have no scales", name, to_string(scales));
      return;
    case QuantFormat::fp8_block:
      return require_tensor(name, scales,
                            {{DType::f32}, {experts, ceil_div(rows, kScaleBlock), ceil_div(cols, kScaleBlock)}}, device);
    case QuantFormat::fp8_channel: return require_tensor(name, scales, {{DType::f32}, {experts, rows}}, device);
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8:
      return require_tensor(name, scales, {{DType::e8m0}, {experts, rows, ceil_div(cols, kMxGroup)}}, device);
  }
}

void validate_weights(const ExpertsArgs& args, Device device) {
  const ExpertWeights& w = args.weights;
  if (static_cast<size_t>(w.format) > static_cast<size_t>(QuantFormat::mxfp4_fp8))
    fail(ErrorCode::invalid_argument, "weights.format is {}; it is no QuantFormat", static_cast<int>(w.format));
  const DType values = weight_dtype(w.format);
  if (w.num_experts < 0) fail(ErrorCode::invalid_argument, "weights.num_experts is {}; it must be 0 or more", w.num_experts);
  require_size("weights.hidden", w.hidden);
  require_size("weights.intermediate", w.intermediate);
  if (w.num_experts == 0) return;
  const int64_t experts = w.num_experts, rows = gate_up_rows(w, args.activation);
  require_tensor("weights.gate_up", w.gate_up, {{values}, {experts, rows, w.hidden}}, device);
  require_scales("weights.gate_up_scales", w.gate_up_scales, w, rows, w.hidden, device);
  require_tensor_if_given("weights.gate_up_bias", w.gate_up_bias, {{DType::f32}, {experts, rows}}, device);
  require_tensor("weights.down", w.down, {{values}, {experts, w.hidden, w.intermediate}}, device);
  require_scales("weights.down_scales", w.down_scales, w, w.hidden, w.intermediate, device);
  require_tensor_if_given("weights.down_bias", w.down_bias, {{DType::f32}, {experts, w.hidden}}, device);
}

void validate_activation(const Activation& activation) {
  if (static_cast<size_t>(activation.kind) > static_cast<size_t>(ActivationKind::relu2))
    fail(ErrorCode::invalid_argument, "activation.kind is {}; it is no ActivationKind", static_cast<int>(activation.kind));
  if (!(activation.limit > 0))
    fail(ErrorCode::invalid_argument, "activation.limit is {}; it must be above 0, infinity for none", activation.limit);
}

// One scale per row, at any distance: they may lie inside received rows.
void require_row_scales(const ConstTensorView& scales, int64_t rows, Device device) {
  ConstTensorView column = scales;
  if (column.ndim == 1) {
    column.ndim = 2;
    column.shape[1] = 1;
    column.strides[1] = 1;
  }
  require_tensor("row_scales", column, {{DType::f32}, {rows, 1}, true}, device);
}

void validate_rows(const ExpertsArgs& args, Device device) {
  const ExpertWeights& w = args.weights;
  if (quantises_activations(w.format))
    require_tensor("rows", args.rows, {{DType::bf16, DType::fp8_e4m3}, {kAnySize, w.hidden}, true}, device);
  else
    require_tensor("rows", args.rows, {{DType::bf16}, {kAnySize, w.hidden}, true}, device);
  const int64_t rows = args.rows.shape[0];
  if (args.rows.dtype == DType::bf16) {
    if (args.row_scales.given())
      fail(ErrorCode::invalid_argument, "row_scales is {}; bf16 rows have no scales", to_string(args.row_scales));
  } else if (activation_group(w.format) == ScaleGroup::group_1x128) {
    require_tensor("row_scales", args.row_scales, {{DType::f32}, {rows, ceil_div(w.hidden, kScaleBlock)}, true}, device);
  } else {
    require_row_scales(args.row_scales, rows, device);
  }
  if (args.num_topk < 1) fail(ErrorCode::invalid_argument, "num_topk is {}; it must be at least 1", args.num_topk);
  require_tensor_if_given("input_weights", args.input_weights, {{DType::f32}, {rows, args.num_topk}, true}, device);
}

// Either a row of output per slot, or one per row of `rows` and what says which slots are whose.
void validate_output(const ExpertsArgs& args, Device device) {
  const int64_t rows = args.rows.shape[0], hidden = args.weights.hidden;
  if (!args.pair_slots.given()) {
    for (const auto& [name, view] : {std::pair<std::string_view, ConstTensorView>{"topk_weights", args.topk_weights},
                                     {"segment_rows", args.segment_rows}})
      if (view.given()) fail(ErrorCode::invalid_argument, "{} is {}; it needs pair_slots", name, to_string(view));
    return require_tensor("output", args.output, {{DType::bf16}, {kAnySize, hidden}, true}, device);
  }
  require_tensor("pair_slots", args.pair_slots, {{DType::i32}, {rows, args.num_topk}}, device);
  require_tensor_if_given("topk_weights", args.topk_weights, {{DType::f32}, {rows, args.num_topk}, true}, device);
  require_tensor_if_given("segment_rows", args.segment_rows, {{DType::i32}, {kAnySize}}, device);
  if (args.segment_rows.given()) {
    const int64_t segments = args.segment_rows.shape[0];
    if (segments < 1 || rows % segments != 0)
      fail(ErrorCode::invalid_argument, "segment_rows has {} segments; they must divide the {} rows", segments, rows);
  }
  require_tensor("output", args.output, {{DType::bf16, DType::f32}, {rows, hidden}, true}, device);
}

void validate_slots(const ExpertsArgs& args, Device device) {
  const int64_t experts = args.weights.num_experts;
  require_tensor("sorted_pairs", args.sorted_pairs, {{DType::i32}, {kAnySize}}, device);
  require_tensor("expert_counts", args.expert_counts, {{DType::i32}, {experts}}, device);
  require_tensor("expert_offsets", args.expert_offsets, {{DType::i32}, {experts + 1}}, device);
  validate_output(args, device);
}

void validate_dense(const ExpertsArgs& args, Device device) {
  if (args.weights.num_experts != 1 || args.num_topk != 1)
    fail(ErrorCode::invalid_argument,
         "sorted_pairs, expert_counts and expert_offsets are left out for {} experts and num_topk {}; that is for one dense "
         "expert and num_topk 1",
         args.weights.num_experts, args.num_topk);
  if (args.pair_slots.given())
    fail(ErrorCode::invalid_argument, "pair_slots is {}; a dense expert's rows are one pair each",
         to_string(args.pair_slots));
  require_tensor("output", args.output, {{DType::bf16}, {args.rows.shape[0], args.weights.hidden}, true}, device);
}

// What the CPU can afford to look at before it starts: nothing is written if a slot would lead outside a tensor.
void validate_slot_values(const ExpertsArgs& args) {
  const SlotMap map(args);
  const auto* offsets = args.expert_offsets.as<int32_t>();
  const int64_t slots = num_slots(args);
  const int64_t num_pairs = args.rows.shape[0] * args.num_topk;
  for (int64_t e = 0; e < args.weights.num_experts; ++e) {
    const int64_t begin = map.begin(e), end = begin + map.count(e);
    if (end < begin || begin < 0 || end > offsets[e + 1] || end > slots)
      fail(
          ErrorCode::invalid_argument,
          "expert {} has {} rows from slot {} on, the next expert's begin at {}; they must lie in order within the {} slots "
          "of sorted_pairs and output",
          e, map.count(e), begin, offsets[e + 1], slots);
    for (int64_t s = begin; s < end; ++s)
      if (map.pair(s) < 0 || map.pair(s) >= num_pairs)
        fail(ErrorCode::invalid_argument, "sorted_pairs[{}] of expert {} is {}; it must be a pair of the {} rows x {}", s, e,
             map.pair(s), args.rows.shape[0], args.num_topk);
  }
}

// A pair's slot holds that pair.
void validate_pair_slots(const ExpertsArgs& args) {
  const SlotMap map(args);
  const PairSums sums(args);
  for (int64_t row = 0; row < args.rows.shape[0]; ++row)
    for (int64_t k = 0; sums.counts(row) && k < args.num_topk; ++k)
      if (const int64_t slot = sums.slot(row, k); slot >= 0 && map.pair(slot) != row * args.num_topk + k)
        fail(ErrorCode::invalid_argument, "pair_slots[{}, {}] is {}, but sorted_pairs[{}] is {}; it must be pair {}", row, k,
             slot, slot, map.pair(slot), row * args.num_topk + k);
}

int64_t bytes_per_expert(const ConstTensorView& view) {
  return view.given() && view.shape[0] > 0 ? size_bytes(view.dtype, view.num_values() / view.shape[0]) : 0;
}

}  // namespace

int64_t num_slots(const ExpertsArgs& args) {
  if (!args.sorted_pairs.given()) return args.rows.shape[0];
  return args.pair_slots.given() ? args.sorted_pairs.shape[0] : std::min(args.sorted_pairs.shape[0], args.output.shape[0]);
}

void validate(const Context& context, const ExpertsArgs& args) {
  validate_activation(args.activation);
  validate_weights(args, context.device());
  validate_rows(args, context.device());
  if (!args.sorted_pairs.given() && !args.expert_counts.given() && !args.expert_offsets.given())
    return validate_dense(args, context.device());
  validate_slots(args, context.device());
  if (context.device().type != DeviceType::cpu) return;
  validate_slot_values(args);
  if (args.pair_slots.given()) validate_pair_slots(args);
}

Cost experts_cost(const ExpertsArgs& args, int64_t num_touched_experts, int64_t num_pairs) {
  const ExpertWeights& w = args.weights;
  int64_t weight_bytes = 0;
  for (const ConstTensorView* view : {&w.gate_up, &w.gate_up_scales, &w.gate_up_bias, &w.down, &w.down_scales, &w.down_bias})
    weight_bytes += bytes_per_expert(*view);
  Cost cost;
  cost.bytes_read = num_touched_experts * weight_bytes + num_pairs * size_bytes(args.rows.dtype, w.hidden);
  if (args.row_scales.given()) cost.bytes_read += num_pairs * num_groups(w.format, w.hidden) * 4;
  cost.bytes_written = num_pairs * w.hidden * 2;
  if (args.pair_slots.given()) {
    cost.bytes_read += args.rows.shape[0] * args.num_topk * (args.topk_weights.given() ? 8 : 4);
    cost.bytes_written = args.rows.shape[0] * size_bytes(args.output.dtype, w.hidden);
  }
  cost.flops = 2 * num_pairs * w.hidden * (gate_up_rows(w, args.activation) + w.intermediate);
  if (quantises_activations(w.format)) cost.fp8_flops = cost.flops;
  return cost;
}

std::vector<VariantInfo> experts_variants() {
  std::vector<VariantInfo> all = infos(std::span<const Variant<ExpertsArgs>>(kCpuVariants));
  for (const Variant<ExpertsArgs>& variant : experts_gpu_variants()) all.push_back(variant.info);
  return all;
}

const Variant<ExpertsArgs>& select_experts(const Context& context, const ExpertsArgs& args) {
  if (args.variant == kOnednn && context.device().type == DeviceType::cpu)
    if (const std::string missing = onednn_missing(context); !missing.empty())
      fail(ErrorCode::missing_component, "{}: {}", kOnednn, missing);
  if (context.device().type == DeviceType::cpu) return select<ExpertsArgs>(kCpuVariants, args.variant, context, args);
  const auto table = experts_gpu_variants();
  // An id needs no tables.
  if (args.variant != "auto") return select(table, args.variant, context, args);
  return select_tuned(table, args.variant, context, args, experts_tuning(context), experts_key(args));
}

void run_experts(Context& context, const ExpertsArgs& args, Stream stream) {
  validate(context, args);
  select_experts(context, args).launch(context, args, stream);
}

}  // namespace mixlane
