// `mixlane tune --stage experts`: which shapes, and what becomes of the choices.

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "measure/clock.hpp"
#include "ops/experts/choose.hpp"
#include "results/files.hpp"
#include "tune/experts_regret.hpp"
#include "tune/outcome.hpp"

namespace mixlane::bench {
namespace {

int size_in(const std::string& text, const std::string& whole) {
  const bool digits = !text.empty() && text.size() < 6 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || std::stoi(text) < 1)
    fail(ErrorCode::invalid_argument, "--shapes '{}': write experts x experts per token, as in 32x8", whole);
  return std::stoi(text);
}

// Shapes of one's own: a hidden and an intermediate size for all of them.
std::vector<Model> own_shapes(const TuneOptions& options) {
  if (options.hidden.size() != 1 || options.intermediate < 16)
    fail(ErrorCode::invalid_argument, "--shapes of experts needs one --hidden and an --intermediate; or name a --model");
  std::vector<Model> models;
  for (const std::string& text : options.shapes) {
    const size_t cross = text.find('x');
    Model model;
    model.name = text;
    model.hidden = options.hidden.front();
    model.intermediate = options.intermediate;
    model.routing.num_experts = size_in(text.substr(0, cross), text) * options.ranks_of_window();
    model.routing.num_topk = size_in(cross == std::string::npos ? "" : text.substr(cross + 1), text);
    models.push_back(std::move(model));
  }
  return models;
}

std::vector<Model> chosen_models(const TuneOptions& options) {
  if (!options.shapes.empty()) return own_shapes(options);
  const Env env = Env::read();
  std::vector<Model> models;
  for (const std::string& model : options.models) models.push_back(find_model(env, model));
  if (models.empty()) models = load_catalogue(env);
  std::erase_if(models, [&](const Model& model) {
    return !model.missing.empty() || model.routing.num_experts == 0 ||
           model.routing.num_experts % options.ranks_of_window() != 0;
  });
  if (models.empty())
    fail(ErrorCode::invalid_argument, "nothing to tune: no model's experts divide by {} ranks; see --ranks",
         options.ranks_of_window());
  return models;
}

// Between the borders of buckets and on them.
std::vector<int64_t> regret_tokens() { return {1, 3, 11, 23, 64, 128, 181, 362, 512, 724, 1448, 2896, 4096, 6000}; }

nlohmann::ordered_json to_json(const ExpertsRegretPoint& point) {
  nlohmann::ordered_json json{{"model", point.model},
                              {"ranks", point.num_ranks},
                              {"quant", name(point.format)},
                              {"workload", to_string(point.workload)},
                              {"tokens", point.tokens}};
  add_json(point, json);
  return json;
}

void measure(Context& context, const TuneOptions& options, ExpertsSweep sweep) {
  if (sweep.tokens.empty()) sweep.tokens = regret_tokens();
  const std::vector<ExpertsRegretPoint> points =
      experts_regret(context, sweep, {parse_workload("uniform"), parse_workload("balanced")}, say);
  for (const std::string& notice : context.notices()) say("note: " + notice);
  if (!options.json.empty()) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const ExpertsRegretPoint& point : points) list.push_back(to_json(point));
    write_output(options.json, list.dump(1) + "\n");
  }
  if (options.json != "-") fmt::print("{}", regret_text(points));
}

}  // namespace

int tune_experts_stage(Context& context, const TuneOptions& options) {
  ExpertsSweep sweep;
  sweep.models = chosen_models(options);
  for (const std::string& quant : options.quants) sweep.formats.push_back(quant_format_from_name(quant));
  sweep.num_ranks = options.ranks_of_window();
  sweep.tokens = options.tokens;
  sweep.race.margin = options.margin;
  if (options.regret) {
    measure(context, options, std::move(sweep));
    return kExitOk;
  }
  const int64_t begin = now_ns();
  const TunedTable fresh = tune_experts(context, sweep, describe_run(options), say);
  say(fmt::format("{} keys in {:.0f} s", fresh.entries.size(), static_cast<double>(now_ns() - begin) * 1e-9));
  store(options, experts_tune_space(), fresh);
  return kExitOk;
}

}  // namespace mixlane::bench
