#include "run/variants.hpp"

#include <algorithm>

#include "ops/align/op.hpp"
#include "ops/dispatch/op.hpp"
#include "ops/experts/op.hpp"
#include "ops/quant/op.hpp"
#include "ops/routing/op.hpp"

namespace mixlane::bench {
namespace {

const std::string& chosen_variant(const MoeLayerConfig& config, std::string_view stage) {
  if (stage == "routing") return config.routing_variant;
  if (stage == "dispatch") return config.dispatch_variant;
  if (stage == "align") return config.align_variant;
  return config.combine_variant;
}

}  // namespace

std::vector<StageVariants> all_variants() {
  return {{"routing", routing_variants()},
          {"dispatch", dispatch_variants()},
          {"align", align_variants()},
          {"experts", experts_variants()},
          {"combine", combine_variants()}};
}

std::vector<StageVariants> lone_stage_variants() {
  return {{"routing", routing_variants()},
          {"quant", quant_variants()},
          {"dequant", dequant_variants()},
          {"align", align_variants()},
          {"experts", experts_variants()}};
}

std::map<std::string, std::string> parse_variants(const std::vector<std::string>& settings) {
  const std::vector<StageVariants> stages = all_variants();
  std::map<std::string, std::string> chosen;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    const std::string stage = setting.substr(0, equals);
    const auto known = std::find_if(stages.begin(), stages.end(), [&](const auto& each) { return each.stage == stage; });
    if (equals == std::string::npos || known == stages.end())
      fail(ErrorCode::invalid_argument,
           "--variant '{}': write stage=id with a stage of routing, dispatch, align, experts, "
           "combine",
           setting);
    std::string id = setting.substr(equals + 1);
    if (stage == "align" && id.size() == 1 && id[0] >= '0' && id[0] <= '9') id = align_variant(id[0] - '0');
    std::string valid = "auto";
    for (const VariantInfo& variant : known->variants) valid += fmt::format(", {}", variant.id);
    const bool found = id == "auto" || std::any_of(known->variants.begin(), known->variants.end(),
                                                   [&](const VariantInfo& variant) { return variant.id == id; });
    if (!found) fail(ErrorCode::invalid_argument, "--variant: {} has no '{}'; valid ones: {}", stage, id, valid);
    chosen[stage] = id;
  }
  return chosen;
}

std::string resolved_variant(const Context& context, const MoeLayerConfig& config, const MoeLayerWeights& weights,
                             Stage stage) {
  if (stage == Stage::experts || stage == Stage::shared_experts) {
    ExpertsArgs args;
    args.weights = stage == Stage::experts ? weights.experts : weights.shared;
    args.activation = config.activation;
    args.batch_invariant = config.batch_invariant;
    args.variant = config.experts_variant;
    return std::string(select_experts(context, args).info.id);
  }
  const std::string& chosen = chosen_variant(config, name(stage));
  if (chosen != "auto") return chosen;
  for (const StageVariants& each : all_variants())
    if (each.stage == name(stage))
      for (const VariantInfo& variant : each.variants)
        if (variant.device == context.device().type) return std::string(variant.id);
  return "";
}

std::string variants_text() {
  std::string text;
  std::vector<StageVariants> stages = all_variants();
  stages.insert(stages.begin() + 1, {{"quant", quant_variants()}, {"dequant", dequant_variants()}});
  for (const StageVariants& stage : stages) {
    text += stage.stage + "\n";
    for (const VariantInfo& variant : stage.variants)
      text += fmt::format("  {:<20} {:<5} {}\n", variant.id, name(variant.device), variant.summary);
  }
  return text;
}

}  // namespace mixlane::bench
