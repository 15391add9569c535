#include "ops/align/op.hpp"

#include <algorithm>
#include <array>
#include <limits>

#include "core/check.hpp"
#include "ops/align/choose.hpp"

namespace mixlane {
namespace {

constexpr std::array<Variant<AlignArgs>, 1> kCpuVariants{{
    {{"align.cpu", "stable counting sort; one histogram and one scatter pass per thread"}, nullptr, launch_align_cpu},
}};

constexpr int64_t kMaxPairs = std::numeric_limits<int32_t>::max();
constexpr int kMaxExperts = 65535;
constexpr int kMaxBlock = 1024;
constexpr int64_t kMaxPackedRows = (1 << 24) - 1;
constexpr int64_t kMaxPackedTopk = 127;

void require_range(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) fail(ErrorCode::invalid_argument, "{} is {}; it must be {}..{}", field, value, low, high);
}

void validate_options(const AlignArgs& args) {
  require_range("num_experts", args.num_experts, 1, kMaxExperts);
  require_range("block", args.block, 1, kMaxBlock);
  require_range("pad_value", args.pad_value, -1, kMaxPairs);
  require_range("num_local_experts", args.num_local_experts, 0, kMaxExperts);
  if (!args.expert_map.given() && args.num_local_experts != 0 && args.num_local_experts != args.num_experts)
    fail(ErrorCode::invalid_argument, "num_local_experts is {} without expert_map; it must be 0 or num_experts ({})",
         args.num_local_experts, args.num_experts);
}

void validate_inputs(const AlignArgs& args, Device device) {
  require_tensor("topk_ids", args.topk_ids, {{DType::i32, DType::i64}, {kAnySize, kAnySize}, true}, device);
  const int64_t rows = args.topk_ids.shape[0], num_topk = args.topk_ids.shape[1];
  if (num_topk < 1) fail(ErrorCode::invalid_argument, "topk_ids has {} columns; it must have at least 1", num_topk);
  if (rows > kMaxPairs / num_topk)
    fail(ErrorCode::invalid_argument, "topk_ids has {} x {} pairs; pairs are counted in int32, split the call at {}", rows,
         num_topk, kMaxPairs);
  require_tensor_if_given("expert_map", args.expert_map, {{DType::i32}, {args.num_experts}}, device);
  require_tensor_if_given("segment_rows", args.segment_rows, {{DType::i32}, {kAnySize}}, device);
  if (args.segment_rows.given()) {
    const int64_t segments = args.segment_rows.shape[0];
    if (segments < 1 || rows % segments != 0)
      fail(ErrorCode::invalid_argument, "segment_rows has {} segments; they must divide the {} rows of topk_ids", segments,
           rows);
  }
  require_tensor_if_given("topk_weights", args.topk_weights, {{DType::f32}, {rows, num_topk}, true}, device);
}

void require_slots(std::string_view argument, const TensorView& view, DType dtype, int64_t at_least, Device device) {
  require_tensor(argument, view, {{dtype}, {kAnySize}}, device);
  if (view.shape[0] < at_least)
    fail(ErrorCode::invalid_argument, "{} has {} elements; these arguments need {} (see align_capacity)", argument,
         view.shape[0], at_least);
}

void validate_outputs(const AlignArgs& args, Device device) {
  const AlignShape shape(args);
  const int64_t capacity = align_capacity(shape.num_pairs(), shape.num_groups(), args.block);
  if (capacity > kMaxPairs)
    fail(ErrorCode::invalid_argument,
         "{} pairs in {} groups padded to block {} may take {} slots; slots are counted in int32, lower block or split the "
         "call",
         shape.num_pairs(), shape.num_groups(), args.block, capacity);
  require_slots("sorted_pairs", args.sorted_pairs, DType::i32, capacity, device);
  if (args.block_experts.given())
    require_slots("block_experts", args.block_experts, DType::i32, capacity / args.block, device);
  require_tensor("num_padded", args.num_padded, {{DType::i32}, {2}}, device);
  require_tensor_if_given("expert_counts", args.expert_counts, {{DType::i32}, {shape.num_local_experts}}, device);
  require_tensor_if_given("expert_offsets", args.expert_offsets, {{DType::i32}, {shape.num_local_experts + 1}}, device);
  require_tensor_if_given("pair_slots", args.pair_slots, {{DType::i32}, {shape.rows, shape.num_topk}}, device);
  if (args.sorted_rows.given()) require_slots("sorted_rows", args.sorted_rows, DType::i32, capacity, device);
  if (args.sorted_weights.given()) {
    require_slots("sorted_weights", args.sorted_weights, DType::f32, capacity, device);
    if (!args.topk_weights.given())
      fail(ErrorCode::invalid_argument, "sorted_weights is given; topk_weights is required too");
  }
  if (args.sorted_packed.given()) {
    require_slots("sorted_packed", args.sorted_packed, DType::i32, capacity, device);
    if (shape.rows > kMaxPackedRows || shape.num_topk > kMaxPackedTopk)
      fail(ErrorCode::invalid_argument, "sorted_packed holds at most {} rows and {} experts per row; topk_ids is [{}, {}]",
           kMaxPackedRows, kMaxPackedTopk, shape.rows, shape.num_topk);
  }
  if (args.zero_fill.given() && (!args.zero_fill.contiguous() || !(args.zero_fill.device == device)))
    fail(ErrorCode::invalid_argument, "zero_fill is {}; it must be dense and on the context's device",
         to_string(args.zero_fill));
}

}  // namespace

AlignShape::AlignShape(const AlignArgs& args)
    : rows(args.topk_ids.shape[0]),
      num_topk(args.topk_ids.shape[1]),
      num_segments(args.segment_rows.given() ? args.segment_rows.shape[0] : 1),
      num_local_experts(args.num_local_experts == 0 ? args.num_experts : args.num_local_experts),
      bucket(args.invalid_ids == InvalidIds::bucket),
      pad_value(args.pad_value == -1 ? static_cast<int32_t>(num_pairs()) : args.pad_value) {}

int64_t align_capacity(int64_t num_pairs, int num_groups, int block) {
  // The worst case: as many groups as possible end with a block that holds one pair.
  const int64_t num_used = std::min<int64_t>(num_pairs, num_groups);
  return (num_used + (num_pairs - num_used) / block) * block;
}

void validate(const Context& context, const AlignArgs& args) {
  validate_options(args);
  validate_inputs(args, context.device());
  validate_outputs(args, context.device());
}

Cost align_cost(const AlignArgs& args) {
  const AlignShape shape(args);
  const int64_t pairs = shape.num_pairs();
  const int64_t slots = std::min(align_capacity(pairs, shape.num_groups(), args.block),
                                 pairs + int64_t{shape.num_groups()} * (args.block - 1) / 2);
  Cost cost;
  cost.bytes_read = pairs * bits(args.topk_ids.dtype) / 8 + (args.expert_map.given() ? 4 * args.num_experts : 0);
  cost.bytes_written = 4 * slots + 4 * (slots / args.block) + 8;
  if (args.expert_counts.given()) cost.bytes_written += 4 * shape.num_local_experts;
  if (args.expert_offsets.given()) cost.bytes_written += 4 * (shape.num_local_experts + 1);
  if (args.pair_slots.given()) cost.bytes_written += 4 * pairs;
  if (args.sorted_rows.given()) cost.bytes_written += 4 * slots;
  if (args.sorted_packed.given()) cost.bytes_written += 4 * slots;
  if (args.sorted_weights.given()) {
    cost.bytes_read += 4 * pairs;
    cost.bytes_written += 4 * slots;
  }
  if (args.zero_fill.given()) cost.bytes_written += size_bytes(args.zero_fill.dtype, args.zero_fill.num_values());
  return cost;
}

std::vector<VariantInfo> align_variants() {
  std::vector<VariantInfo> infos;
  for (const auto& variant : kCpuVariants) infos.push_back(variant.info);
  for (const auto& variant : align_gpu_variants()) infos.push_back(variant.info);
  return infos;
}

std::string_view align_variant(int policy) {
  constexpr std::array<std::string_view, 3> kIds{"auto", "align.oneshot", "align.multi_phase"};
  if (policy < 0 || policy >= static_cast<int>(kIds.size()))
    fail(ErrorCode::invalid_argument, "align policy {}; 0 is auto, 1 oneshot, 2 multi_phase", policy);
  return kIds[static_cast<size_t>(policy)];
}

const Variant<AlignArgs>& select_align(const Context& context, const AlignArgs& args) {
  if (context.device().type == DeviceType::cpu)
    return select(std::span<const Variant<AlignArgs>>(kCpuVariants), args.variant, context, args);
  const auto table = align_gpu_variants();
  // An id needs no tables.
  if (args.variant != "auto") return select(table, args.variant, context, args);
  return select_tuned(table, args.variant, context, args, align_tuning(context), align_key(args));
}

void align(Context& context, const AlignArgs& args, Stream stream) {
  validate(context, args);
  select_align(context, args).launch(context, args, stream);
}

}  // namespace mixlane
