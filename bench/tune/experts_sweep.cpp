#include "tune/experts_sweep.hpp"

#include <algorithm>
#include <memory>

#include "command.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "measure/clock.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/op.hpp"
#include "stage/stage.hpp"
#include "tune/outcome.hpp"

namespace mixlane::bench {
namespace {

// One call's candidates, simpler ones first.
class ExpertsCase {
 public:
  ExpertsCase(Context& context, StageInputs& inputs)
      : tokens_(inputs.cell().tokens), stage_(std::move(make_experts_stages({context, inputs, options_, true}).front())) {
    for (const auto& variant : experts_gpu_variants())
      if (std::string id(variant.info.id); stage_->refusal(id).empty()) candidates_.push_back(std::move(id));
  }

  const std::vector<std::string>& candidates() const { return candidates_; }

  void check(Stream stream) const {
    for (const std::string& id : candidates_) {
      stage_->poison(stream, 0);
      stage_->enqueue(id, stream, 0);
      const Correctness result = stage_->verify(stream, 0);
      if (!result.passed)
        fail(ErrorCode::internal, "{} is wrong at {} tokens: error {:.3g}, allowed {:.3g}; nothing was written", id, tokens_,
             result.rel_error, result.tolerance);
    }
  }

  RaceResult measure(DeviceTimer& timer, const RaceOptions& options) const {
    std::vector<PreparedWork> works;
    for (const std::string& id : candidates_)
      works.push_back(
          timer.prepare({[this, &id](Stream stream, int set) { stage_->enqueue(id, stream, set); }, stage_->num_sets()},
                        {.cache = CacheState::cold}));
    return race_works(works, options);
  }

 private:
  int tokens_;
  StageOptions options_;
  std::unique_ptr<DeviceStage> stage_;
  std::vector<std::string> candidates_;
};

// The key of a call, as experts_key() has it.
PackedKey key_of(const StageCell& cell) {
  const RoutingConfig& routing = cell.shape.routing;
  ExpertsArgs args;
  args.weights.format = cell.format;
  args.weights.num_experts = routing.num_experts / cell.num_ranks;
  args.weights.hidden = cell.shape.hidden;
  args.weights.intermediate = cell.shape.intermediate;
  args.num_topk = routing.num_topk;
  args.rows.shape[0] = cell.tokens;
  return experts_key(args);
}

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

}  // namespace

TunedTable tune_experts(Context& context, const ExpertsSweep& sweep, const TuningRun& run, const TuneProgress& progress) {
  const TuneSpace& space = experts_tune_space();
  TunedTable table = empty_table(space, experts_tuning(context).machine(), run);
  Context cpu;
  DeviceTimer timer(context.device());
  for (const Model& model : sweep.models)
    for (const QuantFormat format : sweep.formats) {
      std::vector<std::pair<int64_t, std::string>> by_tokens;
      const int64_t topk = model.routing.num_topk;
      for (const int64_t tokens : sweep.tokens.empty() ? token_buckets(topk, kMaxTunedTokens) : sweep.tokens) {
        StageInputs inputs({model, format, static_cast<int>(tokens), parse_workload("uniform"), sweep.num_ranks, 1}, cpu);
        const ExpertsCase experts_case(context, inputs);
        if (experts_case.candidates().size() < 2) continue;
        experts_case.check(timer.stream());
        table.entries.push_back(
            make_entry(space, key_of(inputs.cell()), experts_case.candidates(), experts_case.measure(timer, sweep.race)));
        by_tokens.emplace_back(tokens, table.entries.back().choice);
      }
      if (progress && !by_tokens.empty())
        progress(fmt::format("{} / {} ranks, {}: {}", model.name, sweep.num_ranks, name(format), choices_text(by_tokens)));
    }
  return table;
}

int tune_experts_stage(Context& context, const TuneOptions& options) {
  if (options.regret) fail(ErrorCode::invalid_argument, "--regret is measured of align; leave it out for experts");
  ExpertsSweep sweep;
  sweep.models = chosen_models(options);
  for (const std::string& quant : options.quants) sweep.formats.push_back(quant_format_from_name(quant));
  sweep.num_ranks = options.ranks_of_window();
  sweep.tokens = options.tokens;
  sweep.race.margin = options.margin;
  const int64_t begin = now_ns();
  const TunedTable fresh = tune_experts(context, sweep, describe_run(options), say);
  say(fmt::format("{} keys in {:.0f} s", fresh.entries.size(), static_cast<double>(now_ns() - begin) * 1e-9));
  store(options, fresh);
  return kExitOk;
}

}  // namespace mixlane::bench
