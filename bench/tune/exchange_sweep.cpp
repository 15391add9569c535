#include "tune/exchange_sweep.hpp"

#include <algorithm>

#include "command.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "exchange/timer.hpp"
#include "measure/clock.hpp"
#include "mixlane/model.hpp"
#include "stats/stats.hpp"
#include "tune/outcome.hpp"

namespace mixlane::bench {
namespace {

constexpr int kExperts = 256, kTopk = 8;

// One candidate's way, checked and ready.
struct Contender {
  std::string id;
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

std::string way_of(std::string_view id) { return std::string(id.substr(id.find('.') + 1)); }
bool needs_copies(std::string_view id) { return way_of(id) == "copy_engine"; }

std::vector<Contender> contenders_for(ExchangeStage stage, const ExchangeStand& stand, const WayRequest& request) {
  std::vector<Contender> all;
  for (const std::string_view id : exchange_candidates(stage)) {
    Contender each;
    each.id = id;
    try {
      each.way = make_way(stage == ExchangeStage::dispatch ? way_of(id) + "+auto" : "auto+" + way_of(id), request);
      each.run = std::make_unique<ExchangeRun>(stand, *each.way, TimerOptions{});
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported) throw;
      continue;
    }
    const ExchangeRun::Errors errors = each.run->check();
    if (errors.received > 0 || errors.output > each.way->output_tolerance())
      fail(ErrorCode::internal, "wrong output of {} at {} tokens, against the CPU's; nothing was tuned", id,
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
  const TuneSpace& space = exchange_tune_space(stage);
  const PackedKey packed = key.packed();
  TunedEntry entry;
  for (size_t i = 0; i < space.fields.size(); ++i)
    entry.key.push_back(space.fields[i].words.empty()
                            ? TuneValue(packed[i])
                            : TuneValue(std::string(space.fields[i].words[static_cast<size_t>(packed[i])])));
  entry.choice = contenders[static_cast<size_t>(result.winner)]->id;
  for (size_t i = 0; i < contenders.size(); ++i) entry.measured_us.emplace_back(contenders[i]->id, result.median_us[i]);
  std::sort(entry.measured_us.begin(), entry.measured_us.end());
  return entry;
}

std::vector<int64_t> exchange_sizes() {
  std::vector<int64_t> sizes = all_token_buckets(1);
  std::erase_if(sizes, [](int64_t tokens) { return tokens > kMaxTunedTokens; });
  return sizes;
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

TunedTable tune_exchange(ExchangeStage stage, const TunedMachine& machine, const ExchangeSweep& sweep, const TuningRun& run,
                         const TuneProgress& progress) {
  const TuneSpace& space = exchange_tune_space(stage);
  TunedTable table{.file = "the new choices",
                   .stage = std::string(space.stage),
                   .machine = machine,
                   .fields = {},
                   .runs = {run},
                   .entries = {}};
  for (const TuneField& field : space.fields) table.fields.emplace_back(field.name);
  Context cpu;
  const ExchangeStand stand(sweep.num_ranks);
  for (const int hidden : sweep.hidden) {
    Model model;
    model.hidden = hidden;
    model.routing.num_experts = kExperts;
    model.routing.num_topk = kTopk;
    std::vector<std::pair<int64_t, std::string>> by_tokens[2];
    for (const int64_t tokens : sweep.tokens.empty() ? exchange_sizes() : sweep.tokens) {
      const ExchangeShape shape{model, static_cast<int>(tokens), {}, sweep.num_ranks, WireFormat::bf16, CombineWire::bf16, 0,
                                1};
      const ExchangeInputs inputs(shape, {CombineRows::reduced}, cpu);
      const std::vector<RankOnGpu> gpus = upload(inputs);
      ExchangeCase exchange_case;
      exchange_case.num_multiprocessors = sweep.num_multiprocessors;
      const std::vector<Contender> all = contenders_for(stage, stand, {inputs, gpus, exchange_case});
      for (const bool copies : {false, true}) {
        std::vector<const Contender*> contenders;
        for (const Contender& each : all)
          if (copies || !needs_copies(each.id)) contenders.push_back(&each);
        if (contenders.size() < 2) continue;
        const ExchangeKey key{sweep.num_ranks, int64_t{hidden} * 2, sweep.num_multiprocessors, copies, tokens};
        table.entries.push_back(race_entry(stage, key, contenders, sweep.race));
        by_tokens[copies].emplace_back(tokens, table.entries.back().choice);
      }
    }
    for (const bool copies : {false, true})
      if (progress && !by_tokens[copies].empty())
        progress(fmt::format("{} ranks, hidden {}, memory of {}: {}", sweep.num_ranks, hidden, copies ? "copies" : "windows",
                             choices_text(by_tokens[copies])));
  }
  return table;
}

int tune_exchange_stage(Context& context, const TuneOptions& options) {
  if (options.regret) fail(ErrorCode::invalid_argument, "--regret is measured of align; leave it out for {}", options.stage);
  if (!options.shapes.empty() || !options.ids.empty())
    fail(ErrorCode::invalid_argument, "--shapes and --ids are of align; {} takes --hidden, --ranks and --multiprocessors",
         options.stage);
  ExchangeSweep sweep;
  sweep.num_ranks = options.ranks > 0 ? options.ranks : gpu::num_devices();
  sweep.hidden = hidden_sizes(options);
  sweep.num_multiprocessors = options.multiprocessors;
  sweep.race.margin = options.margin;
  for (const ExchangeStage stage : {ExchangeStage::dispatch, ExchangeStage::combine}) {
    if (options.stage.find(name(stage)) == std::string::npos) continue;
    if (exchange_candidates(stage).size() < 2) {
      say(fmt::format("{}: {} is the only candidate, nothing to tune", name(stage), exchange_candidates(stage).front()));
      continue;
    }
    const int64_t begin = now_ns();
    const TunedTable fresh =
        tune_exchange(stage, exchange_tuning(context, stage).machine(), sweep, describe_run(options), say);
    say(fmt::format("{}: {} keys in {:.0f} s", name(stage), fresh.entries.size(),
                    static_cast<double>(now_ns() - begin) * 1e-9));
    store(options, fresh);
  }
  return kExitOk;
}

}  // namespace mixlane::bench
