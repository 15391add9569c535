#include "tune/experts_regret.hpp"

#include "ops/quant/formats.hpp"
#include "tune/experts_case.hpp"

namespace mixlane::bench {

std::vector<ExpertsRegretPoint> experts_regret(Context& context, const ExpertsSweep& sweep,
                                               const std::vector<Workload>& workloads, const TuneProgress& progress) {
  std::vector<ExpertsRegretPoint> points;
  Context cpu;
  DeviceTimer timer(context.device());
  for_each_placed(context, cpu, sweep, [&](const Model& model, QuantFormat format, const auto& experts) {
    for (const Workload& workload : workloads)
      for (const int64_t tokens : sweep.tokens) {
        StageInputs inputs({model, format, static_cast<int>(tokens), workload, sweep.num_ranks, kTuneSeed}, cpu);
        const ExpertsCase experts_case(context, inputs, experts);
        if (experts_case.candidates().size() < 2) continue;
        experts_case.check(timer.stream());
        const auto race = [&](const RaceOptions& options) { return experts_case.measure(timer, options); };
        points.push_back(
            {measure_regret(experts_case.candidates(), experts_case.chosen(), experts_case.modelled(), race, sweep.race),
             model.name, sweep.num_ranks, format, workload, tokens});
      }
    if (progress) progress(fmt::format("{} / {} ranks, {}: measured", model.name, sweep.num_ranks, name(format)));
  });
  return points;
}

std::string regret_text(const std::vector<ExpertsRegretPoint>& points) {
  std::vector<RegretCell> cells;
  for (const ExpertsRegretPoint& point : points) {
    const std::string model = fmt::format("{} / {}", point.model, point.num_ranks);
    const std::string workload = to_string(point.workload);
    cells.push_back({fmt::format("{} | {} | {}", model, name(point.format), workload),
                     fmt::format("{}, {}, {}, {} tokens", model, name(point.format), workload, point.tokens), point});
  }
  return regret_table("model / ranks | quant | workload", cells);
}

}  // namespace mixlane::bench
