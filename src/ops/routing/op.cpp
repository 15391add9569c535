#include "ops/routing/op.hpp"

#include <array>
#include <cmath>

#include "core/check.hpp"

namespace mixlane {
namespace {

constexpr std::array<Variant<RoutingArgs>, 1> kCpuVariants{{
    {{"routing.cpu", "one token after the other: scores, then insertion into the best K"},
     nullptr,
     launch_routing_cpu},
}};

std::span<const Variant<RoutingArgs>> variants_of(DeviceType device) {
  return device == DeviceType::cpu ? std::span<const Variant<RoutingArgs>>(kCpuVariants) : routing_gpu_variants();
}

void require_range(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    fail(ErrorCode::invalid_argument, "routing: {} is {}; it must be {}..{}", field, value, low, high);
}

// Not NaN, not infinite, at least `low`.
void require_finite(std::string_view field, float value, float low, bool low_included) {
  if (std::isfinite(value) && (low_included ? value >= low : value > low)) return;
  fail(ErrorCode::invalid_argument, "routing: {} is {}; it must be finite and {} {}", field, value,
       low_included ? ">=" : ">", low);
}

void validate_groups(const RoutingConfig& c) {
  require_range("num_groups", c.num_groups, 1, c.num_experts);
  require_range("topk_groups", c.topk_groups, 1, c.num_groups);
  if (c.num_groups == 1) return;
  if (c.num_experts % c.num_groups != 0)
    fail(ErrorCode::invalid_argument, "routing: num_groups is {}; it must divide num_experts ({})", c.num_groups,
         c.num_experts);
  if (c.num_zero_experts > 0)
    fail(ErrorCode::invalid_argument, "routing: num_groups is {}; it must be 1 with num_zero_experts ({})", c.num_groups,
         c.num_zero_experts);
  const int group_size = c.num_experts / c.num_groups;
  if (c.group_score == GroupScore::top2_sum && group_size < 2)
    fail(ErrorCode::invalid_argument,
         "routing: num_groups is {}, which leaves 1 expert per group; group_score top2_sum needs 2 or more", c.num_groups);
  if (c.topk_groups * group_size < c.num_topk)
    fail(ErrorCode::invalid_argument, "routing: topk_groups is {}, which leaves {} experts to choose num_topk = {} from",
         c.topk_groups, c.topk_groups * group_size, c.num_topk);
}

void validate_replicas(const RoutingArgs& args, Device device) {
  require_tensor_if_given("replica_offsets", args.replica_offsets, {{DType::i32}, {args.config.num_experts + 1}}, device);
  require_tensor_if_given("replica_ids", args.replica_ids, {{DType::i32}, {kAnySize}}, device);
  if (args.replica_offsets.given() != args.replica_ids.given())
    fail(ErrorCode::invalid_argument, "{} is given; {} is required too",
         args.replica_ids.given() ? "replica_ids" : "replica_offsets",
         args.replica_ids.given() ? "replica_offsets" : "replica_ids");
}

}  // namespace

void validate(const RoutingConfig& c) {
  require_range("num_experts", c.num_experts, 1, kMaxRoutingExperts);
  require_range("num_zero_experts", c.num_zero_experts, 0, kMaxRoutingExperts);
  require_range("num_topk", c.num_topk, 1, kMaxTopk);
  if (c.num_topk > c.num_experts + c.num_zero_experts)
    fail(ErrorCode::invalid_argument, "routing: num_topk is {}; it must be 1..{}, the number of experts", c.num_topk,
         c.num_experts + c.num_zero_experts);
  require_range("scoring", static_cast<int>(c.scoring), 0, static_cast<int>(Scoring::sqrt_softplus));
  require_range("group_score", static_cast<int>(c.group_score), 0, static_cast<int>(GroupScore::top2_sum));
  require_range("nan_policy", static_cast<int>(c.nan_policy), 0, static_cast<int>(NanPolicy::lowest));
  require_finite("renorm_epsilon", c.renorm_epsilon, 0.0f, true);
  require_finite("softcap", c.softcap, 0.0f, true);
  require_finite("scale", c.scale, 0.0f, false);
  validate_groups(c);
}

void validate(const Context& context, const RoutingArgs& args) {
  const RoutingConfig& c = args.config;
  const Device device = context.device();
  validate(c);
  const int64_t num_columns = c.num_experts + c.num_zero_experts;
  require_tensor("logits", args.logits, {{DType::f32, DType::bf16, DType::f16}, {kAnySize, num_columns}, true}, device);
  const int64_t num_tokens = args.logits.shape[0];
  require_tensor_if_given("correction_bias", args.correction_bias, {{DType::f32}, {num_columns}}, device);
  require_tensor_if_given("num_valid_rows", args.num_valid_rows, {{DType::i32}, {1}}, device);
  require_tensor_if_given("hash_table", args.hash_table, {{DType::i32}, {kAnySize, c.num_topk}}, device);
  if (args.hash_table.given()) require_tensor("token_ids", args.token_ids, {{DType::i32}, {num_tokens}}, device);
  validate_replicas(args, device);
  require_tensor("topk_ids", args.topk_ids, {{DType::i32, DType::i64}, {num_tokens, c.num_topk}}, device);
  require_tensor("topk_weights", args.topk_weights, {{DType::f32}, {num_tokens, c.num_topk}}, device);
  if (c.num_zero_experts > 0) require_tensor("zero_weights", args.zero_weights, {{DType::f32}, {num_tokens}}, device);
}

Cost routing_cost(const RoutingArgs& args) {
  constexpr int64_t kFlopsPerScore = 4;  // subtract the maximum, exponential, sum, divide; an exponential counts as one
  const int64_t num_tokens = args.logits.shape[0], num_logits = args.logits.num_values();
  const int64_t num_pairs = num_tokens * args.config.num_topk;
  Cost cost;
  cost.bytes_read = num_logits * bits(args.logits.dtype) / 8;
  if (args.correction_bias.given()) cost.bytes_read += 4 * args.correction_bias.num_values();
  if (args.hash_table.given()) cost.bytes_read += 4 * (num_tokens + num_pairs);
  cost.bytes_written = num_pairs * (bits(args.topk_ids.dtype) / 8 + 4);
  if (args.config.num_zero_experts > 0) cost.bytes_written += 4 * num_tokens;
  cost.flops = kFlopsPerScore * num_logits;
  return cost;
}

std::vector<VariantInfo> routing_variants() {
  std::vector<VariantInfo> all = infos(std::span<const Variant<RoutingArgs>>(kCpuVariants));
  for (const VariantInfo& info : infos(routing_gpu_variants())) all.push_back(info);
  return all;
}

const Variant<RoutingArgs>& select_routing(const Context& context, const RoutingArgs& args) {
  return select(variants_of(context.device().type), args.variant, context, args);
}

void route(Context& context, const RoutingArgs& args, Stream stream) {
  validate(context, args);
  select_routing(context, args).launch(context, args, stream);
}

}  // namespace mixlane
