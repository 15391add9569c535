#include "tune/experts_sweep.hpp"

#include "ops/experts/choose.hpp"
#include "tune/experts_case.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kMostTokens = 32768;  // whose rows and outputs fit beside the weights

}  // namespace

void for_each_placed(Context& context, Context& cpu, const ExpertsSweep& sweep, const PlacedExpertsBody& body) {
  for (const Model& model : sweep.models)
    for (const QuantFormat format : sweep.formats)
      body(model, format,
           std::make_shared<RandomExperts>(cpu, context.device(), model, format, model.routing.num_experts / sweep.num_ranks,
                                           kTuneSeed));
}

TunedTable tune_experts(Context& context, const ExpertsSweep& sweep, const TuningRun& run, const TuneProgress& progress) {
  const TuneSpace& space = experts_tune_space();
  TunedTable table = empty_table(space, experts_tuning(context).machine(), run);
  Context cpu;
  DeviceTimer timer(context.device());
  for_each_placed(context, cpu, sweep, [&](const Model& model, QuantFormat format, const auto& experts) {
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens :
         sweep.tokens.empty() ? bucket_ends(kExpertsBuckets, model.routing.num_topk, kMostTokens) : sweep.tokens) {
      StageInputs inputs({model, format, static_cast<int>(tokens), parse_workload("uniform"), sweep.num_ranks, kTuneSeed},
                         cpu);
      const ExpertsCase experts_case(context, inputs, experts);
      if (experts_case.candidates().size() < 2) continue;
      experts_case.check(timer.stream());
      table.entries.push_back(
          make_entry(space, experts_case.key(), experts_case.candidates(), experts_case.measure(timer, sweep.race)));
      by_tokens.emplace_back(tokens, table.entries.back().choice);
    }
    if (progress && !by_tokens.empty())
      progress(fmt::format("{} / {} ranks, {}: {}", model.name, sweep.num_ranks, name(format), choices_text(by_tokens)));
  });
  return table;
}

}  // namespace mixlane::bench
