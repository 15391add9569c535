// Model files: docs/models.md describes the fields.
#include "mixlane/model.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "io/json.hpp"

namespace mixlane {
namespace {

constexpr int64_t kMaxModelFileBytes = 1 << 20;
constexpr int kMaxWidth = 1 << 20;  // of hidden and intermediate
constexpr double kMaxNumber = 1e6;

constexpr std::array<EnumName<Scoring>, 4> kScorings{{{Scoring::softmax, "softmax"},
                                                      {Scoring::topk_softmax, "topk_softmax"},
                                                      {Scoring::sigmoid, "sigmoid"},
                                                      {Scoring::sqrt_softplus, "sqrt_softplus"}}};
constexpr std::array<EnumName<GroupScore>, 2> kGroupScores{{{GroupScore::max, "max"}, {GroupScore::top2_sum, "top2_sum"}}};
constexpr std::array<EnumName<ActivationKind>, 4> kActivations{{{ActivationKind::swiglu, "swiglu"},
                                                                {ActivationKind::swiglu_oai, "swiglu_oai"},
                                                                {ActivationKind::geglu_tanh, "geglu_tanh"},
                                                                {ActivationKind::relu2, "relu2"}}};

constexpr Presence kRequired = Presence::required;
constexpr Presence kOptional = Presence::optional;

void append(std::vector<std::string>& to, const std::vector<std::string>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// What fields of a model must be in relation to each other; a missing one contradicts nothing.
void check_routing(const JsonFields& fields, const RoutingConfig& routing) {
  if (!fields.missing().empty()) return;
  const auto& r = routing;
  if (r.num_experts % r.num_groups != 0)
    fields.refuse("num_groups", fmt::format("a divisor of num_experts ({})", r.num_experts));
  if (r.topk_groups > r.num_groups) fields.refuse("topk_groups", fmt::format("at most num_groups ({})", r.num_groups));
  const int eligible = r.num_groups > 1 ? r.num_experts / r.num_groups * r.topk_groups : r.num_experts + r.num_zero_experts;
  if (r.num_topk > eligible)
    fields.refuse("num_topk", fmt::format("at most {}, the experts that can be chosen from", eligible));
  if (r.num_groups > 1 && r.num_zero_experts > 0)
    fields.refuse("num_zero_experts", "0 or absent together with num_groups above 1");
  if (r.num_groups > 1 && r.group_score == GroupScore::top2_sum && r.num_experts / r.num_groups < 2)
    fields.refuse("num_groups", fmt::format("at most {}: top2_sum needs two experts per group", r.num_experts / 2));
}

void read_routing(JsonFields& fields, RoutingConfig& routing) {
  fields.integer("num_experts", kRequired, 1, 1024, routing.num_experts);
  fields.integer("num_zero_experts", kOptional, 0, 1024, routing.num_zero_experts);
  fields.integer("num_topk", kRequired, 1, 32, routing.num_topk);
  fields.choice<Scoring>("scoring", kRequired, kScorings, routing.scoring);
  fields.flag("renormalize", kOptional, routing.renormalize);
  fields.number("renorm_epsilon", kOptional, 0, 1, true, routing.renorm_epsilon);
  fields.number("scale", kOptional, 0, kMaxNumber, false, routing.scale);
  fields.integer("num_groups", kOptional, 1, 1024, routing.num_groups);
  fields.integer("topk_groups", kOptional, 1, 1024, routing.topk_groups);
  fields.choice<GroupScore>("group_score", kOptional, kGroupScores, routing.group_score);
  fields.number("softcap", kOptional, 0, kMaxNumber, true, routing.softcap);
  fields.flag("weight_on_input", kOptional, routing.weight_on_input);
  fields.refuse_unknown();
  check_routing(fields, routing);
}

void read_activation(JsonFields& fields, Activation& activation) {
  fields.choice<ActivationKind>("kind", kRequired, kActivations, activation.kind);
  fields.number("limit", kOptional, 0, kMaxNumber, false, activation.limit);
  fields.number("alpha", kOptional, 0, kMaxNumber, false, activation.alpha);
  fields.refuse_unknown();
  const bool clamps = activation.kind == ActivationKind::swiglu || activation.kind == ActivationKind::swiglu_oai;
  if (fields.has("limit") && !clamps) fields.refuse("limit", "absent: only swiglu and swiglu_oai clamp");
  if (fields.has("alpha") && activation.kind != ActivationKind::swiglu_oai)
    fields.refuse("alpha", "absent: only swiglu_oai has it");
}

void read_shared(JsonFields& fields, Model& model) {
  fields.integer("num_shared_experts", kOptional, 0, 1024, model.num_shared_experts);
  const bool has_shared = model.num_shared_experts > 0;
  fields.integer("shared_intermediate", has_shared ? kRequired : kOptional, 0, kMaxWidth, model.shared_intermediate);
  fields.flag("shared_gate", kOptional, model.shared_gate);
  const bool known = std::none_of(fields.missing().begin(), fields.missing().end(), [](const std::string& field) {
    return field == "num_shared_experts" || field == "shared_intermediate";
  });
  if (!known) return;
  if (has_shared != (model.shared_intermediate > 0))
    fields.refuse("shared_intermediate", has_shared ? "above 0, the width of all shared experts together"
                                                    : "0 or absent without num_shared_experts");
  if (model.shared_gate && !has_shared) fields.refuse("shared_gate", "false or absent without num_shared_experts");
}

bool is_name(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

void read_identity(JsonFields& fields, Model& model) {
  fields.text("name", kRequired, model.name);
  model.title = model.name;
  fields.text("title", kOptional, model.title);
  fields.texts("aliases", kOptional, model.aliases);
  // Names become file names and command-line words.
  constexpr std::string_view kNameRule = "made of a-z, 0-9, '-', '_' and '.'";
  if (!is_name(model.name)) fields.refuse("name", kNameRule);
  if (!std::all_of(model.aliases.begin(), model.aliases.end(), is_name)) fields.refuse("aliases", kNameRule);
}

}  // namespace

Model parse_model(std::string_view json, std::string_view file_name) {
  const Json root = parse_json(json, file_name);
  JsonFields fields(root, file_name);
  Model model;
  model.file = file_name;
  read_identity(fields, model);
  fields.integer("hidden", kRequired, 1, kMaxWidth, model.hidden);
  fields.integer("intermediate", kRequired, 1, kMaxWidth, model.intermediate);
  JsonFields routing = fields.object("routing");
  read_routing(routing, model.routing);
  JsonFields activation = fields.object("activation");
  read_activation(activation, model.activation);
  fields.flag("correction_bias", kOptional, model.correction_bias);
  fields.flag("router_bias", kOptional, model.router_bias);
  fields.integer("hash_layers", kOptional, 0, 1024, model.hash_layers);
  fields.flag("expert_bias", kOptional, model.expert_bias);
  read_shared(fields, model);
  fields.text("source", kOptional, model.source);
  fields.texts("unverified", kOptional, model.unverified);
  fields.refuse_unknown();

  std::vector<std::string> known = fields.known();
  for (const JsonFields* part : {&routing, &activation}) append(known, part->known());
  for (const std::string& field : model.unverified)
    if (field != "*" && std::find(known.begin(), known.end(), field) == known.end())
      fields.refuse("unverified", fmt::format("a list of field names, or [\"*\"] for all; '{}' is none", field));
  for (const JsonFields* part : {&fields, &routing, &activation}) append(model.missing, part->missing());
  return model;
}

Model load_model(const std::filesystem::path& file) {
  return parse_model(read_text_file(file, kMaxModelFileBytes), file.string());
}

}  // namespace mixlane
