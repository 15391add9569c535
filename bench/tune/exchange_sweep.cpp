#include "tune/exchange_sweep.hpp"

#include <algorithm>
#include <map>

#include "command.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "exchange/timer.hpp"
#include "measure/clock.hpp"
#include "mixlane/model.hpp"
#include "ops/dispatch/gpu/device_args.hpp"
#include "stats/stats.hpp"
#include "tune/outcome.hpp"

namespace mixlane::bench {
namespace {

constexpr int kExperts = 256, kTopk = 8;

// One candidate's way, checked and ready.
struct Contender {
  std::string way_name;
  std::unique_ptr<ExchangeWay> way;
  std::unique_ptr<ExchangeRun> run;

  const std::vector<double>& samples(ExchangeStage stage) const {
    return stage == ExchangeStage::dispatch ? run->dispatch_us() : run->combine_us();
  }
  // The median of one replay's.
  double sample_us(ExchangeStage stage) const {
    const size_t before = samples(stage).size();
    run->take();
    return quantile(std::span(samples(stage)).subspan(before), 0.5);
  }
};

bool needs_copies(std::string_view way) { return way == "copy_engine"; }

// Ranks with few tokens get partial sums in their inboxes, whatever they ask for: there is nothing to choose.
bool is_latency_here(ExchangeStage stage, int64_t tokens) {
  return stage == ExchangeStage::combine && tokens <= exchange_gpu::kInboxRows;
}

// Ways that are a candidate of every stage, in the order of the candidates.
std::vector<Contender> contenders_for(const ExchangeStand& stand, const WayRequest& request) {
  std::vector<Contender> all;
  for (const std::string_view id : exchange_candidates(ExchangeStage::dispatch)) {
    Contender each;
    each.way_name = id.substr(id.find('.') + 1);
    try {
      each.way = make_way(each.way_name, request);
      each.run = std::make_unique<ExchangeRun>(stand, *each.way, TimerOptions{});
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) throw;
      continue;
    }
    const ExchangeRun::Errors errors = each.run->check();
    if (errors.received > 0 || errors.output > each.way->output_tolerance())
      fail(ErrorCode::internal, "wrong output of {} at {} tokens, against the CPU's; nothing was tuned", each.way_name,
           request.inputs.shape().tokens);
    all.push_back(std::move(each));
  }
  return all;
}

TunedEntry race_entry(ExchangeStage stage, const ExchangeKey& key, const std::vector<const Contender*>& contenders,
                      const RaceOptions& options) {
  const RaceResult result = race(
      static_cast<int>(contenders.size()), [&](int i) { return contenders[static_cast<size_t>(i)]->sample_us(stage); },
      options);
  std::vector<std::string> ids;
  for (const Contender* each : contenders) ids.push_back(fmt::format("{}.{}", name(stage), each->way_name));
  return make_entry(exchange_tune_space(stage), key.packed(), ids, result);
}

std::vector<int> hidden_sizes(const TuneOptions& options) {
  std::vector<int> sizes = options.hidden;
  if (sizes.empty())
    for (const Model& model : load_catalogue(Env::read())) sizes.push_back(model.hidden);
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

}  // namespace

std::vector<TunedTable> tune_exchange(const std::vector<ExchangeStage>& stages, const TunedMachine& machine,
                                      const ExchangeSweep& sweep, const TuningRun& run, const TuneProgress& progress) {
  std::vector<TunedTable> tables;
  for (const ExchangeStage stage : stages) tables.push_back(empty_table(exchange_tune_space(stage), machine, run));
  Context cpu;
  const ExchangeStand stand(sweep.num_ranks);
  for (const int hidden : sweep.hidden) {
    Model model;
    model.hidden = hidden;
    model.routing.num_experts = kExperts;
    model.routing.num_topk = kTopk;
    std::map<std::string, std::vector<std::pair<int64_t, std::string>>> by_tokens;
    for (const int64_t tokens : bucket_ends_of(kExchangeBuckets, sweep.tokens, 1, kMaxTunedTokens)) {
      const ExchangeShape shape{model, static_cast<int>(tokens), {}, sweep.num_ranks, WireFormat::bf16, CombineWire::bf16, 0,
                                1};
      const ExchangeInputs inputs(shape, {CombineRows::reduced}, cpu);
      const std::vector<RankOnGpu> gpus = upload(inputs);
      ExchangeCase exchange_case;
      exchange_case.num_multiprocessors = sweep.num_multiprocessors;
      const std::vector<Contender> all = contenders_for(stand, {inputs, gpus, exchange_case});
      for (const bool copies : {false, true})
        for (size_t s = 0; s < stages.size(); ++s) {
          if (is_latency_here(stages[s], tokens)) continue;
          std::vector<const Contender*> contenders;
          for (const Contender& each : all)
            if (!needs_copies(each.way_name) || copies) contenders.push_back(&each);
          if (contenders.size() < 2) continue;
          const ExchangeKey key{sweep.num_ranks, int64_t{hidden} * 2, sweep.num_multiprocessors, copies, tokens};
          tables[s].entries.push_back(race_entry(stages[s], key, contenders, sweep.race));
          by_tokens[fmt::format("{}, memory of {}", name(stages[s]), copies ? "copies" : "windows")].emplace_back(
              tokens, tables[s].entries.back().choice);
        }
    }
    for (const auto& [what, choices] : by_tokens)
      if (progress)
        progress(fmt::format("{} ranks, hidden {}, {}: {}", sweep.num_ranks, hidden, what, choices_text(choices)));
  }
  return tables;
}

int tune_exchange_stage(Context& context, const TuneOptions& options) {
  if (options.regret)
    fail(ErrorCode::invalid_argument, "--regret is measured of align and experts; leave it out for {}", options.stage);
  if (!options.shapes.empty() || !options.ids.empty())
    fail(ErrorCode::invalid_argument, "--shapes and --ids are of align; {} takes --hidden, --ranks and --multiprocessors",
         options.stage);
  ExchangeSweep sweep;
  sweep.num_ranks = options.ranks > 0 ? options.ranks : gpu::num_devices();
  sweep.hidden = hidden_sizes(options);
  sweep.num_multiprocessors = options.multiprocessors;
  sweep.race.margin = options.margin;
  sweep.tokens = options.tokens;
  std::vector<ExchangeStage> stages;
  for (const ExchangeStage stage : {ExchangeStage::dispatch, ExchangeStage::combine})
    if (options.stage.find(name(stage)) != std::string::npos) stages.push_back(stage);
  const int64_t begin = now_ns();
  const TunedMachine machine = exchange_tuning(context, stages.front()).machine();
  const std::vector<TunedTable> fresh = tune_exchange(stages, machine, sweep, describe_run(options), say);
  for (size_t s = 0; s < stages.size(); ++s) {
    if (fresh[s].entries.empty())
      say(fmt::format("{}: no key has two candidates here, nothing to tune", fresh[s].stage));
    else
      store(options, exchange_tune_space(stages[s]), fresh[s]);
  }
  say(fmt::format("{:.0f} s", static_cast<double>(now_ns() - begin) * 1e-9));
  return kExitOk;
}

}  // namespace mixlane::bench
