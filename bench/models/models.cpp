#include "models/models.hpp"

#include <nlohmann/json.hpp>

#include "core/format.hpp"
#include "report/format.hpp"

namespace mixlane::bench {
namespace {

std::string_view scoring_name(Scoring scoring) {
  switch (scoring) {
    case Scoring::softmax: return "softmax";
    case Scoring::topk_softmax: return "topk_softmax";
    case Scoring::sigmoid: return "sigmoid";
    case Scoring::sqrt_softplus: return "sqrt_softplus";
  }
  return "unknown";
}

std::string known(int value) { return value > 0 ? std::to_string(value) : "?"; }

std::string shared_experts(const Model& model) {
  if (model.num_shared_experts == 0) return "-";
  return fmt::format("{} ({})", model.num_shared_experts, known(model.shared_intermediate));
}

std::string groups(const RoutingConfig& routing) {
  return routing.num_groups > 1 ? fmt::format("{} of {}", routing.topk_groups, routing.num_groups) : "-";
}

std::string experts(const RoutingConfig& routing) {
  return known(routing.num_experts) + (routing.num_zero_experts > 0 ? fmt::format("+{}", routing.num_zero_experts) : "");
}

}  // namespace

std::string models_table(const std::vector<Model>& models) {
  Table table({"name", "hidden", "inter", "E", "K", "shared", "groups", "scoring", "scale", "activation", "source"});
  bool any_unverified = false;
  for (const Model& m : models) {
    any_unverified |= !m.unverified.empty();
    table.add({m.name + (m.unverified.empty() ? "" : " *"), known(m.hidden), known(m.intermediate), experts(m.routing),
               known(m.routing.num_topk), shared_experts(m), groups(m.routing), std::string(scoring_name(m.routing.scoring)),
               fmt::format("{:g}", m.routing.scale), std::string(name(m.activation.kind)), m.source});
  }
  std::string text = table.plain();
  if (any_unverified) text += " * some values are unverified; --json - names them\n";
  return text;
}

nlohmann::ordered_json models_json(const std::vector<Model>& models) {
  auto list = nlohmann::ordered_json::array();
  for (const Model& m : models)
    list.push_back({{"name", m.name},
                    {"title", m.title},
                    {"hidden", m.hidden},
                    {"intermediate", m.intermediate},
                    {"num_experts", m.routing.num_experts},
                    {"num_zero_experts", m.routing.num_zero_experts},
                    {"num_topk", m.routing.num_topk},
                    {"num_shared_experts", m.num_shared_experts},
                    {"shared_intermediate", m.shared_intermediate},
                    {"num_groups", m.routing.num_groups},
                    {"topk_groups", m.routing.topk_groups},
                    {"scoring", scoring_name(m.routing.scoring)},
                    {"renormalize", m.routing.renormalize},
                    {"scale", m.routing.scale},
                    {"activation", name(m.activation.kind)},
                    {"source", m.source},
                    {"unverified", m.unverified}});
  return list;
}

}  // namespace mixlane::bench
